"""Read adapter files strictly, whichever program made them, as what they do to a base model.

A file may be in kohya's format, with the blocks of diffusers or of the original models, in PEFT's, or in LyCORIS'.
Modules are always named as `layer_names.kohya` names them, so that nothing behind this module knows another format.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor

from trainer.adapter_files import safetensors_reader, summary
from trainer.adapter_files.safetensors_reader import SafetensorsFile, refusal
from trainer.adapter_files.summary import PEFT_METADATA, Layer
from trainer.base_models import layer_names
from trainer.base_models.layer_names import Place
from trainer.base_models.registry import DEFAULT, FamilyName


class Module(Protocol):
    """One adapted module of a file."""

    @property
    def rank(self) -> int:
        """Rank of its update, or of its low-rank part."""

    @property
    def alpha(self) -> float:
        """Scale times rank."""

    @property
    def parts(self) -> dict[str, Tensor]:
        """Tensors by the endings of their keys."""

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return the change of the weight [out, in * kh * kw] at strength 1; DoRA needs the base's `weight`."""


@dataclass(frozen=True)
class Lora:
    """`lora_down.weight` [rank, in, ...] and `lora_up.weight` [out, rank, ...]; DoRA has `dora_scale` as well.

    That is a magnitude for each input [1, in, ...], which most programs apply, or for each output [out, 1, ...], as in
    peft and in LyCORIS unless told otherwise.
    """

    parts: dict[str, Tensor]
    alpha: float

    @property
    def down(self) -> Tensor:
        """[rank, in, ...]."""
        return self.parts["lora_down.weight"]

    @property
    def up(self) -> Tensor:
        """[out, rank, ...]."""
        return self.parts["lora_up.weight"]

    @property
    def rank(self) -> int:
        """Rows of down."""
        return self.down.shape[0]

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return alpha / rank * up @ down; DoRA then scales each row (or input) of the new weight to its magnitude."""
        change = (self.alpha / self.rank) * (self.up.flatten(1).float() @ self.down.flatten(1).float())
        if "dora_scale" not in self.parts:
            return change
        if weight is None:
            raise ValueError("the change of a DoRA module depends on the base's weight")
        magnitude, updated = self.parts["dora_scale"].float(), weight + change
        if magnitude.shape[0] == updated.shape[0]:
            by_output: Tensor = magnitude.flatten(1) * updated / updated.norm(dim=1, keepdim=True)
            return by_output - weight
        by_input = updated.reshape(updated.shape[0], magnitude.shape[1], -1)
        norm = torch.linalg.vector_norm(by_input, dim=(0, 2), keepdim=True)
        scaled: Tensor = magnitude.reshape(1, -1, 1) * by_input / norm
        return scaled.flatten(1) - weight


@dataclass(frozen=True)
class LoHa:
    """`hada_w1_a` [out, rank], `hada_w1_b` [rank, in * kh * kw], and the same for the second factor."""

    parts: dict[str, Tensor]
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of the first factor's second matrix."""
        return self.parts["hada_w1_b"].shape[0]

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return alpha / rank * the elementwise product of the two low-rank matrices."""
        first, second = (
            self.parts[f"hada_{name}_a"].float() @ self.parts[f"hada_{name}_b"].float() for name in ("w1", "w2")
        )
        return (self.alpha / self.rank) * first * second


@dataclass(frozen=True)
class LoKr:
    """`lokr_w1` and `lokr_w2`, each either whole or as two factors `_a` and `_b`."""

    parts: dict[str, Tensor]
    alpha: float

    @property
    def rank(self) -> int:
        """Rank of the matrix that is factored; 0 if both are whole."""
        factors = [part for ending, part in self.parts.items() if ending.endswith("_b")]
        return factors[0].shape[0] if factors else 0

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return the Kronecker product, times alpha / rank if there is a rank."""
        scale = self.alpha / self.rank if self.rank else 1.0
        return scale * torch.kron(self._matrix("lokr_w1"), self._matrix("lokr_w2"))

    def _matrix(self, name: str) -> Tensor:
        if name in self.parts:
            return self.parts[name].float().flatten(1)
        return self.parts[f"{name}_a"].float() @ self.parts[f"{name}_b"].flatten(1).float()


_PAIR = ("lora_down.weight", "lora_up.weight")
_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
# Sets of tensors that a module may have beside its alpha, and what it is then.
_KINDS: dict[frozenset[str], type[Lora] | type[LoHa] | type[LoKr]] = {
    frozenset(_PAIR): Lora,
    frozenset((*_PAIR, "dora_scale")): Lora,
    frozenset(_HADAMARD): LoHa,
    **{
        frozenset((*first, *second)): LoKr
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    },
}


@dataclass(frozen=True)
class AdapterFile:
    """Contents of an adapter file: modules by their names in kohya's format, and the tensors of that format."""

    tensors: dict[str, Tensor]
    modules: dict[str, Module]
    metadata: dict[str, str]
    size: int
    family: FamilyName | None = None

    @property
    def kinds(self) -> set[str]:
        """Kinds of its modules: LoRA, DoRA, LoHa, LoKr."""
        return {kind(module) for module in self.modules.values()}


def read(path: Path) -> AdapterFile:
    """Read an adapter file, whatever its format.

    Raises:
        UserError: it is missing, damaged, not finite, not a safetensors file, or not an adapter of a known format.
    """
    return of_file(safetensors_reader.read(path))


def of_file(file: SafetensorsFile) -> AdapterFile:
    """Return the adapter in a safetensors file that was read already.

    Raises:
        UserError: as `read`.
    """
    for key in file.entries:
        if not file.is_finite(key):
            raise refusal(file.name, "{key} has values that are not finite", key=key)
    layers, unknown = summary.layers(file)
    unknown += [next(iter(layer.parts.values())) for layer in layers if layer.module.place is None]
    if unknown:
        raise refusal(file.name, "it has a tensor of an unknown kind ({first})", first=unknown[0][:100])
    if not layers:
        raise refusal(file.name, "it is empty")
    values, family = load(file.data), summary.family(file, layers)
    settings = _peft_settings(file)
    modules: dict[str, Module] = {}
    for layer in layers:
        place = layer.module.place
        assert place  # else it was among the unknown
        name = layer_names.kohya(place, family or DEFAULT)
        if name in modules:
            raise refusal(file.name, "it has {name} twice, under two names", name=name)
        parts = {ending: values[key] for ending, key in layer.parts.items()}
        if layer.module.naming == "dotted":
            parts = _from_peft(settings, place, parts)
        modules[name] = _module(layer, parts, file.name)
    modules = dict(sorted(modules.items()))
    return AdapterFile(tensors_of(modules), modules, file.metadata, len(file.data), family)


def of_tensors(tensors: Mapping[str, Tensor], name: str) -> AdapterFile:
    """Return the adapter that tensors in kohya's format make.

    Raises:
        UserError: they make none.
    """
    return of_file(safetensors_reader.parse(save(dict(tensors)), name))


def tensors_of(modules: Mapping[str, Module]) -> dict[str, Tensor]:
    """Return the tensors of modules in kohya's format, each module with its alpha."""
    return {
        f"{name}.{ending}": tensor
        for name, module in modules.items()
        for ending, tensor in {**module.parts, "alpha": torch.tensor(module.alpha)}.items()
    }


def _peft_settings(file: SafetensorsFile) -> dict[str, Any]:
    """Return the settings that diffusers writes beside PEFT's format, by `component.setting`."""
    try:
        settings = json.loads(file.metadata.get(PEFT_METADATA, "{}"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise refusal(file.name, "its {peft_metadata} is damaged", peft_metadata=PEFT_METADATA)
    return settings


def _from_peft(settings: dict[str, Any], place: Place, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer's tensors in kohya's format: with an alpha, and DoRA's magnitudes as a column."""
    converted = {"alpha": torch.tensor(_peft_alpha(settings, place, parts)), **parts}
    if "dora_scale" in parts and "lora_down.weight" in parts:
        converted["dora_scale"] = parts["dora_scale"].reshape(-1, *[1] * (parts["lora_down.weight"].dim() - 1))
    return converted


def _peft_alpha(settings: dict[str, Any], place: Place, parts: dict[str, Tensor]) -> float:
    """Return a layer's alpha by PEFT's settings; the rank, for peft's default scale of 1, if they do not say."""
    endings = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    rank = next((parts[ending].shape[0] for ending in endings if ending in parts and parts[ending].dim()), 1)
    alpha = settings.get(f"{place.component}.lora_alpha", rank)
    patterns = settings.get(f"{place.component}.alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        # Anybody may have written the pattern: it is compared as text, never compiled as a regular expression.
        if f".{place.path}".endswith(f".{pattern.removeprefix('text_model.')}"):
            alpha = value
    if not isinstance(alpha, int | float):
        return math.nan
    rank_stabilized = settings.get(f"{place.component}.use_rslora") is True
    return alpha * math.sqrt(rank) if rank_stabilized else float(alpha)


def _module(layer: Layer, parts: dict[str, Tensor], name: str) -> Module:
    module = layer.module.name
    alpha = parts.pop("alpha", None)
    if alpha is None:
        raise refusal(name, "{module} has no alpha", module=module)
    build = _KINDS.get(frozenset(parts.keys() - {"lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2"}))
    if build is None:
        nearest = min(_KINDS, key=lambda endings: len(endings ^ parts.keys()))
        missing, unknown = sorted(nearest - parts.keys()), sorted(parts.keys() - nearest)
        if unknown:
            raise refusal(name, "it has a tensor of an unknown kind ({module}.{key})", module=module, key=unknown[0])
        part = missing[0].removeprefix("lora_").removesuffix(".weight")
        raise refusal(name, "{module} lacks its {part}", module=module, part=part)
    shapes = {ending: tuple(part.shape) for ending, part in parts.items()}
    size = None if any(len(shape) not in (2, 4) for shape in shapes.values()) else layer_names.weight_size(shapes)
    if alpha.numel() != 1 or size is None or not _fits(parts, size):
        raise refusal(name, "the shapes of {module} do not fit together", module=module)
    if not float(alpha) > 0:
        raise refusal(name, "the alpha of {module} is not positive", module=module)
    return build(_without_cores(parts), float(alpha))


def _fits(parts: dict[str, Tensor], size: tuple[int, int]) -> bool:
    """Tell whether both factors have the same number of dimensions, and DoRA one magnitude per output or per input."""
    scale = parts.get("dora_scale")
    if "lora_up.weight" not in parts:
        return scale is None
    down = parts["lora_down.weight"]
    if down.dim() != parts["lora_up.weight"].dim():
        return False
    return scale is None or scale.numel() == scale.shape[0] == size[0] or scale.shape[:2] == (1, down.shape[1])


def _without_cores(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multiply the core tensors of a Tucker decomposition into the factors beside them, for the same change.

    LyCORIS (Yeh et al. 2024, https://arxiv.org/abs/2309.14859, section 3.2) has them for convolutions.
    """
    plain = dict(parts)
    if (core := plain.pop("lora_mid.weight", None)) is not None:
        down = torch.einsum("pqhw,qi->pihw", core.float(), parts["lora_down.weight"].flatten(1).float())
        plain["lora_down.weight"] = down.to(core.dtype)
    for core_name, first, second in (
        ("hada_t1", "hada_w1_a", "hada_w1_b"),
        ("hada_t2", "hada_w2_a", "hada_w2_b"),
        ("lokr_t2", "lokr_w2_a", "lokr_w2_b"),
    ):
        if (core := plain.pop(core_name, None)) is not None:
            plain[first] = parts[first].T.contiguous()
            wide = torch.einsum("pqhw,qi->pihw", core.float(), parts[second].float()).to(core.dtype)
            plain[second] = wide.flatten(1)
    return plain


def kind(module: Module) -> str:
    """Return the kind of adapter that a module belongs to."""
    if "dora_scale" in module.parts:
        return "DoRA"
    return "LoRA" if isinstance(module, Lora) else type(module).__name__


def by_input(module: Module) -> bool:
    """Tell whether a module is a DoRA with a magnitude for each input."""
    magnitude = module.parts.get("dora_scale")
    return magnitude is not None and magnitude.shape[0] != module.parts["lora_up.weight"].shape[0]


def readable_by_diffusers(file: AdapterFile) -> bool:
    """Tell whether diffusers applies the file as intended when it is in kohya's format.

    It recognizes a text encoder's layers by an `out_proj` among them, and stops with an error if there is none.
    """
    encoders = {name.partition("_text_model_")[0] for name in file.modules if not name.startswith("lora_unet_")}
    known = {name.partition("_text_model_")[0] for name in file.modules if name.endswith("_self_attn_out_proj")}
    return file.kinds == {"LoRA"} and encoders <= known
