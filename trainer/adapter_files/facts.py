"""Facts that loading rules depend on: the layers of an adapter file, and how they fit the model it is for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from trainer.adapter_files import summary
from trainer.adapter_files.family_rules import METADATA
from trainer.adapter_files.peft_settings import OWN_PREFIX, PeftSettings
from trainer.adapter_files.programs import Beside, LayerNaming, TextName, UnetName
from trainer.adapter_files.safetensors_reader import SafetensorsFile
from trainer.adapter_files.summary import Layer
from trainer.base_models import layer_names, layer_shapes
from trainer.base_models.layer_names import Module, Place
from trainer.base_models.registry import FAMILIES, UNETS, FamilyName
from trainer.base_models.spec import FamilySpec, Shape

_FORMS = {  # kinds by their algorithm, and a tensor with the dimensions of a convolution
    ("LoRA", "lora_mid.weight"): "Tucker LoRA",
    ("LoHa", "hada_w1_b"): "convolution LoHa",
    ("LoKr", "lokr_t2"): "Tucker LoKr",
    ("OFT", "oft_blocks"): "BOFT",
    ("IA3", "weight"): "convolution IA3",
}
_T5_ALONE: dict[str, TextName] = {"lora_te1_": "t5 first", "lora_te_": "t5 only", layer_names.T5_PREFIX: "t5 third"}


@dataclass(frozen=True)
class Facts:
    """An adapter file and the model it is for, whose weight shapes are `known`."""

    file: SafetensorsFile
    layers: list[Layer]
    unknown_keys: list[str]
    family: FamilyName
    model: str
    known: Mapping[str, Shape]
    peft_settings: PeftSettings

    @property
    def spec(self) -> FamilySpec:
        """Facts about its family."""
        return FAMILIES[self.family]

    @cached_property
    def peft(self) -> bool:
        """True if the file is in PEFT's format."""
        return any(layer.module.naming == "dotted" for layer in self.layers)

    @cached_property
    def generic(self) -> bool:
        """True if the file has the names of ComfyUI's own models."""
        return all(layer.module.naming == "generic" for layer in self.layers)

    @cached_property
    def _flat(self) -> list[Layer]:
        """Layers under names without dots, as in kohya's format."""
        return [layer for layer in self.layers if layer.module.naming not in ("dotted", "generic")]

    @cached_property
    def without_alpha(self) -> list[str]:
        """Layers in kohya's format that lack their alpha, of kinds that are scaled by one."""
        scaled = [layer for layer in self._flat if summary.rank_of(self.file, layer) and not layer.by_ai_toolkit]
        return [layer.module.name for layer in scaled if "alpha" not in layer.parts]

    @cached_property
    def incomplete(self) -> list[str]:
        """Layers that lack a tensor, or whose tensors do not fit together."""
        return [layer.module.name for layer in self.layers if not self._is_complete(layer)]

    @cached_property
    def misfits(self) -> list[str]:
        """Layers that the model has in another size."""
        complete = [layer for layer in self.layers if self.has(layer.module) and self._is_complete(layer)]
        return [layer.module.name for layer in complete if not summary.fits(self.file, layer, self.known)]

    def _is_complete(self, layer: Layer) -> bool:
        return layer_shapes.weight_size(summary.shapes(self.file, layer)) is not None

    @cached_property
    def twice(self) -> list[str]:
        """Layers that are in the file under two names."""
        names: dict[Place, str] = {}
        placed = [(layer.module.place, layer.module.name) for layer in self.layers if layer.module.place]
        return [name for place, name in placed if names.setdefault(place, name) != name]

    @cached_property
    def not_finite(self) -> list[str]:
        """Tensors with values that are infinite or NaN."""
        return summary.not_finite(self.file, self.layers, self.unknown_keys)

    def has(self, module: Module) -> bool:
        """Return True if the model has a layer."""
        return f"{module.component}:{module.path}" in self.known

    def kind_of(self, layer: Layer) -> str:
        """Return the kind of a layer as the rules of programs name it, such as `DoRA by input` or `whole LoKr`."""
        shapes = summary.shapes(self.file, layer)
        kind, magnitude = self._form_of(layer, shapes), shapes.get("dora_scale")
        if magnitude is None or layer.by_ai_toolkit:  # no program knows the name of its magnitudes
            return kind
        if layer.by_output:
            return "DoRA of PEFT"
        axis = "by output" if magnitude and magnitude[0] > 1 else "by input"
        of_lora = {"LoRA": "DoRA", "Tucker LoRA": "Tucker DoRA"}
        return f"{of_lora.get(kind, f'{kind} with DoRA')} {axis}"

    def _form_of(self, layer: Layer, shapes: Mapping[str, Shape]) -> str:
        """Return the kind of a layer without regard to magnitudes."""
        kind, dims = layer.algorithm, {ending: len(shape) for ending, shape in shapes.items()}
        for (algorithm, ending), form in _FORMS.items():
            if kind == algorithm and dims.get(ending) == 4:
                return form
        if kind == "LoRA" and dims.get("lora_up.weight") == 2 and dims.get("lora_down.weight") == 4:
            return "DyLoRA"
        if kind == "LoKr" and {"lokr_w1", "lokr_w2"} <= dims.keys():
            return "whole LoKr"
        if kind == "OFT" and "alpha" in layer.parts and self.file.number(layer.parts["alpha"]) > 0:
            return "constrained OFT"
        if kind == "norm" and layer.module.in_text_encoder:
            return "text norm"
        return "bias" if kind == "full" and "diff" not in dims else kind

    def is_scaled(self, layer: Layer) -> bool:
        """Return True if a layer's alpha is another number than its rank."""
        rank = summary.rank_of(self.file, layer)
        return bool(rank) and "alpha" in layer.parts and self.file.number(layer.parts["alpha"]) != rank

    def is_scaled_beside_a(self, layer: Layer, beside: Mapping[LayerNaming, Beside]) -> bool:
        """Return True if tensors beside lora_A scale a layer, which a program drops."""
        name, scales = self.transformer_name(layer), "dora_scale" in layer.parts or self.is_scaled(layer)
        drops = name is not None and beside.get(name) == "drops"
        return drops and scales and ".lora_A." in layer.parts.get("lora_down.weight", "")

    @cached_property
    def scaled_by_settings(self) -> bool:
        """True if PEFT's settings give a layer another alpha than its rank."""
        ranks = {
            layer.module.named: summary.rank_of(self.file, layer)
            for layer in self.layers
            if layer.module.naming == "dotted"
        }
        settings = self.peft_settings
        return any(
            place and rank and settings.of(place).alpha_of(place.path, rank) != rank for place, rank in ranks.items()
        )

    @cached_property
    def by_lycoris(self) -> bool:
        """True if sd-scripts needs LyCORIS for the file."""
        return any(self.kind_of(layer) != "LoRA" for layer in self.layers)

    def unet_name(self, layer: Layer) -> UnetName | None:
        """Return how the file names a layer of the UNet; None if it is not one."""
        module = layer.module
        if module.component != "unet":
            return None
        if module.naming == "generic":
            return "generic" if module.prefix else "bare original"
        if module.prefix == layer_names.OFT_PREFIX:
            return "oft diffusers" if module.naming == "diffusers" else "oft"
        if module.naming == "original":
            return "original" if self.spec.original_names else "foreign original"
        if module.naming == "diffusers":
            return "lycoris" if module.prefix == "lycoris_" else "diffusers"
        if ".processor." in module.name:
            if any("_lora." in key for key in layer.parts.values()):
                return "processor"
            return "mixed processor"
        if module.name.startswith(OWN_PREFIX):
            return "peft"
        attention = ".to_" in module.name
        if module.prefix:
            return "dotted attention" if attention else "dotted"
        return "bare attention" if attention else "bare"

    def transformer_name(self, layer: Layer) -> LayerNaming | None:
        """Return how the file names a layer of a transformer; None if it is not one."""
        module = layer.module
        if module.component != "transformer":
            return None
        if module.naming == "generic" and not module.prefix:
            return "bare original"
        if module.naming == "generic" and self._dotted_beside_generic:
            return "generic dotted"  # a layer whose name is the same in both
        if module.naming == "generic":
            return "generic peft" if any(".lora_A." in key for key in layer.parts.values()) else "generic"
        if module.naming == "dotted":
            if module.prefix == layer_names.GENERIC_PREFIX:
                return "generic dotted"
            own: LayerNaming = "peft" if module.name.startswith(OWN_PREFIX) else "bare"
            return "dotted" if module.prefix else own
        if module.naming == "original":
            return "joined"
        by_prefix: dict[str, LayerNaming] = {"lycoris_": "lycoris", "lora_unet_": "musubi"}
        return by_prefix.get(module.prefix, "onetrainer")

    @cached_property
    def _dotted_beside_generic(self) -> bool:
        modules = [layer.module for layer in self.layers]
        return any(module.naming == "dotted" and module.prefix == layer_names.GENERIC_PREFIX for module in modules)

    @cached_property
    def transformer_names(self) -> set[LayerNaming]:
        """Ways in which the file names layers of a transformer."""
        return {name for layer in self.layers if (name := self.transformer_name(layer))}

    def text_name(self, layer: Layer) -> TextName | None:
        """Return how the file names a layer of a text encoder; None if it is not one."""
        module = layer.module
        if not module.in_text_encoder:
            return None
        if module.naming == "generic":
            return "generic"
        if module.component == layer_names.T5:
            return self._t5_name(module)
        if module.naming == "dotted":
            return "dotted" if module.text_model else "dotted flat"
        if not module.text_model:
            return "flat"
        if module.prefix == self.spec.prefixes.get(module.component):
            return "own"
        only = len(self.spec.text_encoders) == 1 and module.prefix == "lora_te1_"
        first = len(self.spec.text_encoders) == 2 and module.prefix == "lora_te_"
        return "te1 for the only" if only else "te for the first" if first else "other prefix"

    def _t5_name(self, module: Module) -> TextName:
        if module.naming == "dotted":
            return "dotted t5"
        if not self.spec.text_encoders:
            return _T5_ALONE.get(module.prefix, "other prefix")
        if module.prefix == layer_names.T5_PREFIX:
            return "t5"
        if (large := self.spec.adapted_encoder) and layer_names.is_t5(module.prefix, large.component):
            return "t5 by folder"
        return "other prefix"

    @cached_property
    def beside_blocks(self) -> bool:
        """True if the file has layers of text encoders, or of the denoiser outside its blocks."""
        return any(
            self.text_name(layer) or (layer.module.place and layer.module.place.block == "outside")
            for layer in self.layers
        )

    @cached_property
    def listed_by_a1111(self) -> FamilyName | None:
        """Family that A1111 lists the file under; None if it lists it under all."""
        metadata = self.file.metadata
        if not metadata:
            return None
        version, v2 = metadata.get("ss_base_model_version", ""), metadata.get("ss_v2") == "True"
        listed = next(name for name, names in METADATA.items() if names.v2 == v2)
        for name, spec in FAMILIES.items():
            if spec.original_names and version.startswith(METADATA[name].prefixes):
                listed = name
        return listed

    @cached_property
    def unet_names(self) -> set[UnetName]:
        """Ways in which the file names layers of the UNet."""
        return {name for layer in self.layers if (name := self.unet_name(layer))}

    @cached_property
    def both_namings(self) -> bool:
        """True if layers of a UNet that is named as the original are named in both ways."""
        return self.spec.original_names and {"original", "diffusers"} <= self.unet_names

    @cached_property
    def lost_of_diffusers(self) -> set[str]:
        """Names of layers of the UNet under names of 2023, which it translates only if the first key is one of them."""
        namings = ("dotted", "dotted attention", "processor")
        layers = [layer for layer in self.layers if self.unet_name(layer) in namings]
        keys = sorted((key, layer.module.name) for layer in layers for key in layer.parts.values())
        if not keys or ".lora_A." not in keys[0][0]:
            return set()
        current = (".lora_A.", ".lora_B.", ".lora_magnitude_vector")
        return {name for key, name in keys if not any(part in key for part in current)}

    @cached_property
    def lost_of_openclip(self) -> set[str]:
        """Names of layers of OpenCLIP's text encoders that A1111 leaves out.

        They are norms, attention without all four layers, and those with the prefix of the first of two encoders.
        """
        joined = {encoder.component for encoder in self.spec.text_encoders if "resblocks" in encoder.single_file}
        lost: list[Layer] = []
        blocks: dict[tuple[str, str], list[Layer]] = {}
        for layer in self.layers:
            module = layer.module
            if module.component not in joined:
                continue
            if layer.algorithm == "norm" or self.text_name(layer) == "te1 for the only":
                lost.append(layer)
            if ".self_attn." in module.path:
                blocks.setdefault((module.component, module.path.rpartition(".")[0]), []).append(layer)
        lost += [layer for block in blocks.values() if len(block) < 4 for layer in block]
        return {layer.module.name for layer in lost}

    @cached_property
    def family_for_invoke(self) -> FamilyName | None:
        """Return the family that InvokeAI takes the file for, by widths that it sees in few kinds of layers."""
        kinds = ("LoRA", "Tucker LoRA", "DyLoRA", "DoRA", "LoHa", "whole LoKr", "full", "IA3")
        seen = [layer for layer in self._flat if self.kind_of(layer).startswith(kinds)]
        deep = any(
            layer.module.prefix == "lora_unet_" and re.search(r"transformer_blocks\.([2-9]|\d\d)\.", layer.module.path)
            for layer in self.layers
        )
        by_depth = next((name for name, unet in UNETS.items() if unet.depth > 2), None) if deep else None
        return summary.family_by_width(self.file, seen) or by_depth
