"""A strict reader for adapter files: nothing of a file is believed before it was checked, nothing is unpickled."""

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load
from torch import Tensor

from trainer.errors import UserError

MAX_HEADER = 8 * 2**20
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")


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
    """`lora_down.weight` [rank, in, ...], `lora_up.weight` [out, rank, ...]; DoRA has `dora_scale` [out, 1, ...]."""

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
        """Alpha / rank * up @ down; with DoRA, each row of the sum of it and the weight is given its own length."""
        change = (self.alpha / self.rank) * (self.up.flatten(1).float() @ self.down.flatten(1).float())
        if "dora_scale" not in self.parts:
            return change
        if weight is None:
            raise ValueError("the change of a DoRA module depends on the base's weight")
        moved = weight + change
        new: Tensor = self.parts["dora_scale"].float().flatten(1) * moved / moved.norm(dim=1, keepdim=True)
        return new - weight


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
        return self.parts[f"{name}_a"].float() @ self.parts[f"{name}_b"].float()


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
_ENDINGS = frozenset({"alpha"}.union(*_FORMS))


@dataclass(frozen=True)
class AdapterFile:
    """What is in an adapter file."""

    tensors: dict[str, Tensor]
    modules: dict[str, Module]
    metadata: dict[str, str]
    size: int


def read(path: Path) -> AdapterFile:
    """Read an adapter file in kohya form.

    Raises:
        UserError: it is missing, no safetensors file, damaged, not finite, or no adapter of this form.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no file {path.name}.", "Check the path.") from None
    except IsADirectoryError:
        raise UserError(f"{path.name} is a folder.", "Give the path of a .safetensors file.") from None
    metadata = check(data, path.name)
    tensors = load(data)
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise _refusal(path.name, f"{key} has values that are not finite")
    return AdapterFile(tensors, _modules(tensors, path.name), metadata, len(data))


def _refusal(name: str, reason: str) -> UserError:
    return UserError(f"{name} cannot be used: {reason}.", "Use an adapter in the .safetensors form of kohya or Limner.")


def check(data: bytes, name: str) -> dict[str, str]:
    """Check the container (header length, unique keys, known types, tiling offsets); returns the metadata."""
    if len(data) < 8:
        raise _refusal(name, "it is too short for a safetensors file")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(MAX_HEADER, len(data) - 8):
        raise _refusal(name, "it is no safetensors file, or its header is damaged")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise _refusal(name, "its header is damaged or names a tensor twice") from None
    if not isinstance(header, dict):
        raise _refusal(name, "its header is no table")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refusal(name, "its metadata is not text")
    position = 0
    for entry in sorted(header.values(), key=_start):
        position = _check_entry(entry, position, name)
    if position != len(data) - 8 - length:
        raise _refusal(name, "it is cut off, or has bytes that belong to no tensor")
    return metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if any(count > 1 for count in Counter(key for key, _ in pairs).values()):
        raise ValueError("a key twice")
    return dict(pairs)


def _start(entry: Any) -> int:  # noqa: ANN401 - foreign JSON
    try:
        return int(entry["data_offsets"][0])
    except (TypeError, KeyError, IndexError, ValueError, OverflowError):
        return -1


def _check_entry(entry: Any, position: int, name: str) -> int:  # noqa: ANN401 - foreign JSON
    """Check one tensor's entry, which must begin at `position`; returns where it ends."""
    try:
        shape, (begin, end), size = entry["shape"], entry["data_offsets"], _SIZES[entry["dtype"]]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise _refusal(name, "its header describes a tensor in an unknown way") from None
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _refusal(name, "its header has odd numbers")
    if begin != position or end - begin != math.prod(shape) * size:
        raise _refusal(name, "its header does not fit its data")
    return int(end)


def _modules(tensors: dict[str, Tensor], name: str) -> dict[str, Module]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, ending = key.partition(".")
        if ending not in _ENDINGS or not module.startswith(_PREFIXES):
            raise _refusal(name, f"it has a tensor of an unknown kind ({key[:100]})")
        parts.setdefault(module, {})[ending] = tensor
    if not parts:
        raise _refusal(name, "it is empty")
    return {module: _module(module, part, name) for module, part in sorted(parts.items())}


def _module(module: str, part: dict[str, Tensor], name: str) -> Module:
    alpha = part.pop("alpha", None)
    if alpha is None:
        raise _refusal(name, f"{module} lacks its alpha")
    form = _FORMS.get(frozenset(part))
    if form is None:
        near = min(_FORMS, key=lambda endings: len(endings ^ part.keys()))
        missing, odd = sorted(near - part.keys()), sorted(part.keys() - near)
        if odd:
            raise _refusal(name, f"it has a tensor of an unknown kind ({module}.{odd[0]})")
        raise _refusal(name, f"{module} lacks its {missing[0].removeprefix('lora_').removesuffix('.weight')}")
    if alpha.numel() != 1 or not _fits(part):
        raise _refusal(name, f"the shapes of {module} do not fit together")
    if float(alpha) <= 0:
        raise _refusal(name, f"the alpha of {module} is not positive")
    return form(part, float(alpha))


def _fits(part: dict[str, Tensor]) -> bool:
    if any(tensor.dim() not in (2, 4) for tensor in part.values()):
        return False
    if "lora_up.weight" in part:
        down, up = part["lora_down.weight"], part["lora_up.weight"]
        scale = part.get("dora_scale", up)
        return down.dim() == up.dim() and down.shape[0] == up.shape[1] and scale.shape[0] == up.shape[0]
    pairs = [(part[key], part[f"{key[:-1]}b"]) for key in part if key.endswith("_a")]
    if any(one.dim() != 2 or two.dim() != 2 or one.shape[1] != two.shape[0] for one, two in pairs):
        return False
    sizes = {(one.shape[0], two.shape[1]) for one, two in pairs}
    return "hada_w1_a" not in part or len(sizes) == 1


def describe(file: AdapterFile) -> dict[str, Any]:
    """What a person wants to know about an adapter file, ready for JSON."""
    text = [name for name in file.modules if not name.startswith("lora_unet_")]
    return {
        "architecture": file.metadata.get("modelspec.architecture", "unknown"),
        "base": file.metadata.get("ss_base_model_version", "unknown"),
        "kind": " and ".join(sorted({_kind(module) for module in file.modules.values()})),
        "modules": len(file.modules),
        "unet_modules": len(file.modules) - len(text),
        "text_encoder_modules": len(text),
        "ranks": sorted({module.rank for module in file.modules.values()}),
        "alphas": sorted({module.alpha for module in file.modules.values()}),
        "precision": sorted(
            {
                str(part.dtype).removeprefix("torch.")
                for module in file.modules.values()
                for part in module.parts.values()
            }
        ),
        "bytes": file.size,
        "title": file.metadata.get("modelspec.title", ""),
        "trigger": file.metadata.get("modelspec.trigger_phrase", ""),
        "steps": file.metadata.get("ss_steps", ""),
        "pictures": file.metadata.get("ss_num_train_images", ""),
        "trained": file.metadata.get("modelspec.date", ""),
        "data_sha256": file.metadata.get("sshs_model_hash", ""),
    }


def _kind(module: Module) -> str:
    return "DoRA" if "dora_scale" in module.parts else "LoRA" if isinstance(module, Lora) else type(module).__name__


def readable_by_diffusers(file: AdapterFile) -> bool:
    """Whether diffusers does with the file what it is meant to do."""
    return all(_kind(module) == "LoRA" for module in file.modules.values())
