"""Adapter files as what they do to a base model: strictly read, whichever program made them, and written by tensors.

A file may be in kohya's form, with the blocks of diffusers or of the original models, in PEFT's, or in LyCORIS'. What
is read is always named as `layer_names.kohya` names it, so that nothing behind this module knows another form.
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
from trainer.adapter_files.safetensors_reader import refusal
from trainer.adapter_files.summary import Layer
from trainer.base_models import layer_names
from trainer.base_models.detect import FamilyName
from trainer.base_models.layer_names import Place

PEFT_METADATA = "lora_adapter_metadata"


class Module(Protocol):
    """One adapted module of a file."""

    @property
    def rank(self) -> int:
        """Of its update, or of its low-rank part."""

    @property
    def alpha(self) -> float:
        """Scale times rank."""

    @property
    def parts(self) -> dict[str, Tensor]:
        """Its tensors, by the ending of their keys."""

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change of the weight [out, in * kh * kw] at strength 1; `weight` is the base's, which DoRA needs."""


@dataclass(frozen=True)
class Lora:
    """`lora_down.weight` [rank, in, ...], `lora_up.weight` [out, rank, ...]; DoRA has `dora_scale`.

    That is a length for each output [out, 1, ...], or, in older files of LyCORIS, for each input [1, in, ...].
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
        """Alpha / rank * up @ down; with DoRA, each row (or input) of the weight and it is given its own length."""
        change = (self.alpha / self.rank) * (self.up.flatten(1).float() @ self.down.flatten(1).float())
        if "dora_scale" not in self.parts:
            return change
        if weight is None:
            raise ValueError("the change of a DoRA module depends on the base's weight")
        scale, moved = self.parts["dora_scale"].float(), weight + change
        if scale.shape[0] == moved.shape[0]:
            by_output: Tensor = scale.flatten(1) * moved / moved.norm(dim=1, keepdim=True)
            return by_output - weight
        by_input = moved.reshape(moved.shape[0], scale.shape[1], -1)
        new: Tensor = scale.reshape(1, -1, 1) * by_input / torch.linalg.vector_norm(by_input, dim=(0, 2), keepdim=True)
        return new.flatten(1) - weight


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
        """Alpha / rank * the product, entry by entry, of the two low-rank matrices."""
        one, two = (
            self.parts[f"hada_{name}_a"].float() @ self.parts[f"hada_{name}_b"].float() for name in ("w1", "w2")
        )
        return (self.alpha / self.rank) * one * two


@dataclass(frozen=True)
class LoKr:
    """`lokr_w1` and `lokr_w2`, either one whole or as two factors `_a` and `_b`."""

    parts: dict[str, Tensor]
    alpha: float

    @property
    def rank(self) -> int:
        """Of the matrix that is in two factors; 0 if both are whole."""
        factors = [part for ending, part in self.parts.items() if ending.endswith("_b")]
        return factors[0].shape[0] if factors else 0

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The Kronecker product, times alpha / rank if there is a rank."""
        one, two = (self._matrix(name) for name in ("lokr_w1", "lokr_w2"))
        return (self.alpha / self.rank if self.rank else 1.0) * torch.kron(one, two)

    def _matrix(self, name: str) -> Tensor:
        if name in self.parts:
            return self.parts[name].float().flatten(1)
        return self.parts[f"{name}_a"].float() @ self.parts[f"{name}_b"].flatten(1).float()


_PAIR = ("lora_down.weight", "lora_up.weight")
_HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
# Which tensors a module may have beside its alpha, and what it is then.
_FORMS: dict[frozenset[str], type[Lora] | type[LoHa] | type[LoKr]] = {
    frozenset(_PAIR): Lora,
    frozenset((*_PAIR, "dora_scale")): Lora,
    frozenset(_HADAMARD): LoHa,
    **{
        frozenset((*one, *two)): LoKr
        for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for two in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
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
        """LoRA, DoRA, LoHa, LoKr: those that are in it."""
        return {kind(module) for module in self.modules.values()}


def read(path: Path) -> AdapterFile:
    """Read an adapter file, in whatever form.

    Raises:
        UserError: it is missing, no safetensors file, damaged, not finite, or no adapter of a known form.
    """
    return of_container(safetensors_reader.read(path))


def of_container(file: safetensors_reader.Container) -> AdapterFile:
    """The adapter in a container that was read already.

    Raises:
        UserError: as `read`.
    """
    for key in file.entries:
        if not file.is_finite(key):
            raise refusal(file.name, "{key} has values that are not finite", key=key)
    layers, strange = summary.layers(file)
    lost = [*strange, *(next(iter(layer.parts.values())) for layer in layers if layer.module.place is None)]
    if lost:
        raise refusal(file.name, "it has a tensor of an unknown kind ({first})", first=lost[0][:100])
    if not layers:
        raise refusal(file.name, "it is empty")
    values, family = load(file.data), summary.family(file, layers)
    told = _told_by_peft(file)
    modules: dict[str, Module] = {}
    for layer in layers:
        place = layer.module.place
        assert place  # else it was among the lost
        name = layer_names.kohya(place, family or "sd15")
        if name in modules:
            raise refusal(file.name, "it has {name} twice, under two names", name=name)
        parts = {ending: values[key] for ending, key in layer.parts.items()}
        if layer.module.naming == "dotted":
            parts = _from_peft(told, place, parts)
        modules[name] = _module(layer, parts, file.name)
    modules = dict(sorted(modules.items()))
    return AdapterFile(tensors_of(modules), modules, file.metadata, len(file.data), family)


def of_tensors(tensors: Mapping[str, Tensor], name: str) -> AdapterFile:
    """The adapter that tensors in kohya's form are.

    Raises:
        UserError: they make none.
    """
    return of_container(safetensors_reader.parse(save(dict(tensors)), name))


def tensors_of(modules: Mapping[str, Module]) -> dict[str, Tensor]:
    """Kohya's form of modules, each with its alpha."""
    return {
        f"{name}.{ending}": tensor
        for name, module in modules.items()
        for ending, tensor in {**module.parts, "alpha": torch.tensor(module.alpha)}.items()
    }


def _told_by_peft(file: safetensors_reader.Container) -> dict[str, Any]:
    """The settings that diffusers writes beside PEFT's form, by `component.setting`."""
    try:
        told = json.loads(file.metadata.get(PEFT_METADATA, "{}"))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise refusal(file.name, "its {peft_metadata} is damaged", peft_metadata=PEFT_METADATA)
    return told


def _from_peft(told: dict[str, Any], place: Place, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts as kohya's form has them: with an alpha, and DoRA's lengths as a column."""
    given = {"alpha": torch.tensor(_alpha_of_peft(told, place, parts)), **parts}
    if "dora_scale" in parts and "lora_down.weight" in parts:
        given["dora_scale"] = parts["dora_scale"].reshape(-1, *[1] * (parts["lora_down.weight"].dim() - 1))
    return given


def _alpha_of_peft(told: dict[str, Any], place: Place, parts: dict[str, Tensor]) -> float:
    """A layer's alpha from PEFT's settings; the rank, as peft's default scale of 1, if they do not say."""
    ranked = [parts[one] for one in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if one in parts]
    rank = ranked[0].shape[0] if ranked and ranked[0].dim() else 1
    alpha = told.get(f"{place.component}.lora_alpha", rank)
    patterns = told.get(f"{place.component}.alpha_pattern")
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        # The pattern is of foreign make: taken as text, not as a regular expression.
        if f".{place.path}".endswith(f".{pattern.removeprefix('text_model.')}"):
            alpha = value
    if not isinstance(alpha, int | float):
        return math.nan
    return alpha * math.sqrt(rank) if told.get(f"{place.component}.use_rslora") is True else float(alpha)


def _module(layer: Layer, parts: dict[str, Tensor], name: str) -> Module:
    module = layer.module.name
    alpha = parts.pop("alpha", None)
    if alpha is None:
        raise refusal(name, "{module} lacks its alpha", module=module)
    cores = {one for one in ("lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2") if one in parts}
    form = _FORMS.get(frozenset(parts.keys() - cores))
    if form is None:
        near = min(_FORMS, key=lambda endings: len(endings ^ parts.keys()))
        missing, odd = sorted(near - parts.keys()), sorted(parts.keys() - near)
        if odd:
            raise refusal(name, "it has a tensor of an unknown kind ({module}.{key})", module=module, key=odd[0])
        raise refusal(
            name,
            "{module} lacks its {part}",
            module=module,
            part=missing[0].removeprefix("lora_").removesuffix(".weight"),
        )
    shapes = {ending: tuple(part.shape) for ending, part in parts.items()}
    size = None if any(len(shape) not in (2, 4) for shape in shapes.values()) else layer_names.weight_size(shapes)
    if alpha.numel() != 1 or size is None or not _fits(parts, size):
        raise refusal(name, "the shapes of {module} do not fit together", module=module)
    if not float(alpha) > 0:
        raise refusal(name, "the alpha of {module} is not positive", module=module)
    return form(_plain(parts), float(alpha))


def _fits(parts: dict[str, Tensor], size: tuple[int, int]) -> bool:
    """Tell whether both factors have the same number of dimensions, and DoRA one magnitude per output or per input."""
    scale = parts.get("dora_scale")
    if "lora_up.weight" not in parts:
        return scale is None
    down = parts["lora_down.weight"]
    lengths = scale is None or scale.numel() == scale.shape[0] == size[0] or scale.shape[:2] == (1, down.shape[1])
    return down.dim() == parts["lora_up.weight"].dim() and lengths


def _plain(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same change without the core tensors of a Tucker decomposition, multiplied into a factor beside each.

    LyCORIS (Yeh et al. 2024, https://arxiv.org/abs/2309.14859, section 3.2) has them for convolutions.
    """
    plain = dict(parts)
    if (core := plain.pop("lora_mid.weight", None)) is not None:
        down = torch.einsum("pqhw,qi->pihw", core.float(), parts["lora_down.weight"].flatten(1).float())
        plain["lora_down.weight"] = down.to(core.dtype)
    for core_name, first, second in (
        ("hada_t1", "hada_w1_a", "hada_w1_b"), ("hada_t2", "hada_w2_a", "hada_w2_b"),
        ("lokr_t2", "lokr_w2_a", "lokr_w2_b"),
    ):  # fmt: skip
        if (core := plain.pop(core_name, None)) is not None:
            plain[first] = parts[first].T.contiguous()
            wide = torch.einsum("pqhw,qi->pihw", core.float(), parts[second].float()).to(core.dtype)
            plain[second] = wide.flatten(1)
    return plain


def kind(module: Module) -> str:
    """Return the kind of adapter that a module belongs to."""
    return "DoRA" if "dora_scale" in module.parts else "LoRA" if isinstance(module, Lora) else type(module).__name__


def readable_by_diffusers(file: AdapterFile) -> bool:
    """Tell whether diffusers applies the file as intended when it is in kohya's format.

    It knows the form of a text encoder's layers by their `out_proj`, and stops with an error where none has it.
    """
    encoders = {name.partition("_text_model_")[0] for name in file.modules if not name.startswith("lora_unet_")}
    known = {name.partition("_text_model_")[0] for name in file.modules if name.endswith("_self_attn_out_proj")}
    return file.kinds == {"LoRA"} and encoders <= known
