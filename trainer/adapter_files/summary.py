"""Summary of an adapter file, from its header and small tensors alone; needs no torch and loads no model."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trainer import foreign_text
from trainer.adapter_files.family_rules import METADATA
from trainer.adapter_files.safetensors_reader import TYPES, SafetensorsFile
from trainer.base_models import layer_names, layer_shapes, transformer_names
from trainer.base_models.layer_names import Module
from trainer.base_models.registry import FAMILIES, TRANSFORMERS, UNETS, FamilyName
from trainer.base_models.spec import MAX_CLIP_SKIP, FamilySpec, Shape

COVER = "ssmd_cover_images"
MAX_COVER = 4 * 2**20
# Kinds by how the names of their tensors begin; that of a bias is with others, too.
_ALGORITHMS = (
    ("lora_", "LoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("a1.", "GLoRA"),
    ("oft_R", "OFTv2"),
    ("oft_", "OFT"),
    ("on_input", "IA3"),
    ("w_norm", "norm"),
    ("b_norm", "norm"),
    ("diff", "full"),
)
TRAINING_SETTINGS = {
    "optimizer": "ss_optimizer",
    "learning rate": "ss_learning_rate",
    "schedule": "ss_lr_scheduler",
    "steps": "ss_steps",
    "resolution": "ss_resolution",
    "seed": "ss_seed",
    "clip skip": "ss_clip_skip",
    "precision": "ss_mixed_precision",
    "base": "ss_sd_model_name",
    "min-SNR": "ss_min_snr_gamma",
}


@dataclass(frozen=True)
class Layer:
    """One adapted layer of a file: its name there, and the keys of its tensors by their endings in kohya's format."""

    module: Module
    parts: dict[str, str]

    @property
    def algorithm(self) -> str:
        """LoRA, LoHa, LoKr, GLoRA, OFT, IA3, full or norm; "" if the tensors make none of these."""
        return next((kind for start, kind in _ALGORITHMS if any(part.startswith(start) for part in self.parts)), "")

    @property
    def by_ai_toolkit(self) -> bool:
        """True if it is a DoRA under the name that ai-toolkit alone has for magnitudes, which stores no alpha."""
        return self.parts.get("dora_scale", "").endswith(layer_names.MAGNITUDE)

    @property
    def by_output(self) -> bool:
        """True if it is a DoRA whose magnitudes, one for each output, are a vector, as PEFT and ai-toolkit store it."""
        return "dora_scale" in self.parts and not self.parts["dora_scale"].endswith(".dora_scale")

    @property
    def has_peft_bias(self) -> bool:
        """True if it is a LoRA with a bias of its own, which is scaled with it, as PEFT alone has it."""
        return ".lora_B." in self.parts.get("diff_b", "")

    @property
    def kind(self) -> str:
        """Its algorithm, but DoRA for a LoRA with magnitudes."""
        if "dora_scale" not in self.parts:
            return self.algorithm
        return "DoRA" if self.algorithm == "LoRA" else f"{self.algorithm} with DoRA"


def layers(file: SafetensorsFile) -> tuple[list[Layer], list[str]]:
    """List the layers of a file, and the keys that belong to none, both in the order of the header."""
    parts_by_name: dict[str, dict[str, str]] = {}
    unknown = []
    for key in file.entries:
        name, ending = layer_names.split(key)
        if ending and (layer_names.read(name).place or name.startswith(layer_names.PREFIXES)):
            parts_by_name.setdefault(name, {})[ending] = key
        else:
            unknown.append(key)
    only = _only_family(file, [Layer(layer_names.read(name), parts) for name, parts in parts_by_name.items()])
    return [Layer(layer_names.read(name, only), parts) for name, parts in parts_by_name.items()], unknown


def _only_family(file: SafetensorsFile, layers: list[Layer]) -> FamilyName | None:
    """Return the only family whose transformers have all layers of a file that are in blocks, if there is one.

    Of several, it is the one that the metadata name.
    """
    inside = [layer for layer in layers if transformer_names.block(layer.module.path)]
    sets = [_families(file, layer) for layer in inside]
    common = set.intersection(*sets) if sets else set[FamilyName]()
    named = family_by_metadata(file.metadata)
    if named in common:
        return named
    return next(iter(common)) if len(common) == 1 else None


def _families(file: SafetensorsFile, layer: Layer) -> set[FamilyName]:
    """Return the families whose transformers can have a layer, by its proportions if its name means several layers."""
    module = layer.module
    if module.place and module.naming not in ("original", "generic"):
        return set(transformer_names.families(module.path))
    paths = transformer_names.named_alike(module.name.removeprefix(module.prefix))
    size = layer_shapes.weight_size(shapes(file, layer))
    if len(set(paths.values())) == 1 or not size or 0 in size:
        return set(paths)
    known = {family: layer_shapes.known(family).get(f"transformer:{path}", size) for family, path in paths.items()}
    return {family for family, shape in known.items() if size[0] * shape[1] == size[1] * shape[0]}


def shapes(file: SafetensorsFile, layer: Layer) -> dict[str, Shape]:
    """Shapes of a layer's tensors by their endings."""
    return {ending: file.entries[key].shape for ending, key in layer.parts.items() if ending != "alpha"}


def family_by_width(file: SafetensorsFile, layers: list[Layer]) -> FamilyName | None:
    """Return the family that the widths of layers tell, or None where no published model has these widths.

    Cross-attention tells it best; without any, the text encoders do. Of transformers of the same width, the metadata
    tell one from the other, if the layers do not.
    """
    by_context_width = {unet.context_width: family for family, unet in UNETS.items()}
    encoder_widths: dict[str, int] = {}
    transformers = list(TRANSFORMERS)
    is_published = False
    for layer in layers:
        place, size = layer.module.place, layer_shapes.weight_size(shapes(file, layer))
        if not place or not size:
            continue
        if place.component == "transformer":
            names = list(transformer_names.families(place.path))
            if transformer_names.block(place.path):  # layers outside blocks have inputs of other widths
                names = [name for name in names if size[1] in TRANSFORMERS[name].widths]
                names = [name for name in names if layer_shapes.is_published(name, f"transformer:{place.path}")]
                is_published = is_published or bool(names)
            transformers = [name for name in transformers if name in names] or transformers
            continue
        if ".attn2.to_k" in place.path and size[1] in by_context_width:
            return by_context_width[size[1]]
        if place.path.endswith("self_attn.q_proj"):
            encoder_widths.setdefault(place.component, size[1])
    if is_published:
        named = family_by_metadata(file.metadata)
        return named if named in transformers else transformers[0]
    if any(layer.module.component == "transformer" for layer in layers):
        return None
    return _family_by_encoders(encoder_widths, {layer.module.prefix for layer in layers})


def _family_by_encoders(widths: dict[str, int], prefixes: set[str]) -> FamilyName | None:
    matching = [
        family
        for family, spec in FAMILIES.items()
        if widths and widths.items() <= {encoder.component: encoder.width for encoder in spec.text_encoders}.items()
    ]
    if not matching:
        return None
    others_prefixes = {prefix for family in matching[1:] for prefix in FAMILIES[family].prefixes.values()}
    # The first encoder of XL has the width of the only one of 1.x. Under XL's name it may be either: wrongly named, or
    # without its second encoder.
    ambiguous = prefixes & (others_prefixes - {*FAMILIES[matching[0]].prefixes.values()})
    return None if ambiguous else matching[0]


def family_by_metadata(metadata: dict[str, str]) -> FamilyName | None:
    """Return the family that the metadata name."""
    for text in (metadata.get("modelspec.architecture", ""), metadata.get("ss_base_model_version", "")):
        for family, names in METADATA.items():
            if text.startswith(names.prefixes):
                return family
    if metadata.get("ss_v2") == "True":
        return next(family for family, names in METADATA.items() if names.v2)
    return None


def family(file: SafetensorsFile, layers: list[Layer]) -> FamilyName | None:
    """Return the family of base models that a file is for: by its widths, its metadata, or the names of its layers.

    None if it has nothing that only one of the families has.
    """
    return (
        family_by_width(file, layers)
        or family_by_metadata(file.metadata)
        or _family_by_names(layers)
        or _family_by_unet(file, layers)
    )


def _family_by_names(layers: list[Layer]) -> FamilyName | None:
    """Return the family which is the only one that can have some layer."""
    for layer in layers:
        families = [family for family, spec in FAMILIES.items() if _can_have(spec, layer.module)]
        if len(families) == 1:
            return families[0]
    return None


def _can_have(spec: FamilySpec, module: Module) -> bool:
    """Return True if a family can have a layer, by its denoiser, its depth, and its text encoders' names."""
    if module.component == "transformer":
        return any(family == spec.name for family in transformer_names.families(module.path))
    if module.component == "unet" and not spec.unet:
        return False
    if module.component == layer_names.T5:
        large = spec.adapted_encoder
        return large is not None and layer_names.is_t5(module.prefix, large.component)
    block = re.search(r"transformer_blocks\.(\d+)\.", module.path)
    if block and spec.unet and int(block[1]) >= spec.unet.depth:
        return False
    text_names = {*spec.prefixes.values(), *(f"{component}." for component in spec.prefixes)}
    return not module.prefix.startswith(("lora_te", "text_encoder")) or module.prefix in text_names


def _family_by_unet(file: SafetensorsFile, layers: list[Layer]) -> FamilyName | None:
    """Return the first family whose attention has projections of this kind, or whose layers have original names."""
    for layer in layers:
        if layer.module.path.endswith(".proj_in") and layer.kind == "LoRA":
            linear = not any(len(shape) == 4 for shape in shapes(file, layer).values())
            return next(family for family, unet in UNETS.items() if unet.linear_projections == linear)
    if any(layer.module.naming == "original" and layer.module.component == "unet" for layer in layers):
        return next(family for family, unet in UNETS.items() if unet.original_names)
    return None


def model(file: SafetensorsFile, layers: list[Layer], family: FamilyName | None) -> str:
    """Return the known model which has the most of the file's layers; "" if none has half of them."""
    counts = {
        name: sum(fits(file, layer, layer_shapes.known(name)) for layer in layers)
        for name, (model_family, _) in layer_shapes.MODELS.items()
        if family in (model_family, None)
    }
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] > len(layers) / 2 else ""


def fits(file: SafetensorsFile, layer: Layer, known: Mapping[str, Shape]) -> bool:
    """Return True if a model has the layer in this shape."""
    weight = known.get(f"{layer.module.component}:{layer.module.path}")
    size = layer_shapes.weight_size(shapes(file, layer))
    if not weight or not size:
        return False
    return layer_shapes.same_size(size, (weight[0], math.prod(weight[1:])))


def describe(file: SafetensorsFile) -> dict[str, Any]:
    """Summarize an adapter file for people, ready for JSON."""
    known_layers, unknown_keys = layers(file)
    text_layers = [layer for layer in known_layers if layer.module.in_text_encoder]
    metadata, family_name = file.metadata, family(file, known_layers)
    keys = {key for layer in known_layers for ending, key in layer.parts.items() if ending != "alpha"}
    dtypes = {file.entries[key].dtype for key in keys}
    alphas = {file.number(layer.parts["alpha"]) for layer in known_layers if "alpha" in layer.parts}
    namings = {layer.module.naming for layer in known_layers}
    form = "PEFT/diffusers" if "dotted" in namings else "ComfyUI" if "generic" in namings else "kohya"
    return {
        "family": FAMILIES[family_name].title if family_name else "unknown",
        "architecture": metadata.get("modelspec.architecture", "unknown"),
        "base": metadata.get("ss_base_model_version", "unknown"),
        "form": form,
        "kind": " and ".join(sorted({layer.kind or "unknown" for layer in known_layers})) or "none",
        "modules": len(known_layers),
        "unet_modules": len(known_layers) - len(text_layers),
        "text_encoder_modules": len(text_layers),
        "unknown_keys": len(unknown_keys),
        "ranks": sorted({rank for layer in known_layers if (rank := rank_of(file, layer))}),
        "alphas": sorted(alpha for alpha in alphas if math.isfinite(alpha)),
        "precision": sorted(TYPES.get(dtype, dtype) for dtype in dtypes),
        "finite": not not_finite(file, known_layers, unknown_keys),
        "bytes": file.size,
        "blocks": _bytes_by_block(file, known_layers),
        "title": metadata.get("modelspec.title", ""),
        "trigger": metadata.get("modelspec.trigger_phrase", ""),
        "steps": metadata.get("ss_steps", ""),
        "pictures": metadata.get("ss_num_train_images", ""),
        "begun": _date(metadata.get("ss_training_started_at", "")),
        "trained": metadata.get("modelspec.date", "") or _date(metadata.get("ss_training_finished_at", "")),
        "recipe": {
            name: metadata[key] for name, key in TRAINING_SETTINGS.items() if metadata.get(key, "None") != "None"
        },
        "config": metadata.get("limner.config", ""),
        "cover": bool(cover(metadata)),
        "data_sha256": metadata.get("sshs_model_hash", ""),
    }


def not_finite(file: SafetensorsFile, layers: list[Layer], unknown_keys: list[str]) -> list[str]:
    """List tensors with infinite or undefined values.

    The alpha of a LoKr of two whole matrices has no use: ai-toolkit writes 10^10 there, which is infinite in fp16.
    """
    unused = {layer.parts.get("alpha") for layer in layers if {"lokr_w1", "lokr_w2"} <= layer.parts.keys()}
    keys = [key for layer in layers for key in layer.parts.values() if key not in unused]
    return [key for key in keys + unknown_keys if not file.is_finite(key)]


def not_float(file: SafetensorsFile, layers: list[Layer]) -> list[str]:
    """List tensors of whole numbers where an adapter has fractions: all but single numbers."""
    return [
        key
        for layer in layers
        for ending, key in layer.parts.items()
        if ending not in ("alpha", "on_input", "oft_R.scaled_oft", "oft_R.terms") and not file.entries[key].is_float
    ]


def rank_of(file: SafetensorsFile, layer: Layer) -> int:
    """Return a layer's rank; 0 if it has none."""
    return layer_shapes.rank(shapes(file, layer))


def _bytes_by_block(file: SafetensorsFile, layers: list[Layer]) -> dict[str, int]:
    """Bytes of the tensors in each block, in the order of the model."""
    sizes: Counter[str] = Counter()
    for layer in layers:
        block = layer.module.place.block if layer.module.place else "unknown"
        sizes[block] += sum(file.entries[key].size for key in layer.parts.values())
    order = (
        *("text_encoder", "text_encoder_2", layer_names.T5, "down_blocks", "mid_block", "up_blocks"),
        *dict.fromkeys(name for transformer in TRANSFORMERS.values() for name in transformer.blocks),
        *("outside", "unknown"),
    )

    def place(block: str) -> tuple[int, int]:
        name, _, number = block.rpartition(".")
        return order.index(name or block), int(number) if name else 0

    return dict(sorted(sizes.items(), key=lambda item: place(item[0])))


def clip_skip(metadata: Mapping[str, str]) -> int:
    """Return the clip skip that an adapter was trained with; 0 if its metadata do not say."""
    text = metadata.get("ss_clip_skip", "")
    return min(int(text), MAX_CLIP_SKIP) if re.fullmatch("[0-9]{1,2}", text) else 0


def _date(seconds: str) -> str:
    try:
        return datetime.fromtimestamp(float(seconds), UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return ""


def cover(metadata: dict[str, str]) -> str:
    """Return the cover image as base64 text of a PNG, JPEG or WebP; "" if there is none."""
    try:
        images = foreign_text.parse_json(metadata.get(COVER, "[]"))
    except foreign_text.ForeignTextError:
        images = []
    first = images[0] if isinstance(images, list) and images else ""
    thumbnail = metadata.get("modelspec.thumbnail", "").partition(";base64,")[2]
    image = first if isinstance(first, str) and first else thumbnail
    is_image = image.startswith(("iVBOR", "/9j/", "UklGR")) and len(image) <= MAX_COVER
    return image if is_image and re.fullmatch(r"[A-Za-z0-9+/]+=*", image) else ""
