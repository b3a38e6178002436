"""A strict reader for adapter files: nothing of a file is believed before it was checked, nothing is unpickled."""

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from trainer.errors import UserError

MAX_HEADER = 8 * 2**20
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_ROLES = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}


@dataclass(frozen=True)
class Module:
    """One adapted module of a file: down [rank, in, ...], up [out, rank, ...], alpha (0-d)."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of down."""
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """The change of the weight at strength 1: alpha / rank * up @ down, flattened to [out, in * kh * kw]."""
        return (self.alpha / self.rank) * (self.up.flatten(1).float() @ self.down.flatten(1).float())


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
        module, _, role = key.partition(".")
        if role not in _ROLES or not module.startswith(_PREFIXES):
            raise _refusal(name, f"it has a tensor of an unknown kind ({key[:100]})")
        parts.setdefault(module, {})[_ROLES[role]] = tensor
    if not parts:
        raise _refusal(name, "it is empty")
    return {module: _module(module, part, name) for module, part in sorted(parts.items())}


def _module(module: str, part: dict[str, Tensor], name: str) -> Module:
    missing = {"down", "up", "alpha"} - part.keys()
    if missing:
        raise _refusal(name, f"{module} lacks its {sorted(missing)[0]}")
    down, up, alpha = part["down"], part["up"], part["alpha"]
    if down.dim() not in (2, 4) or down.dim() != up.dim() or down.shape[0] != up.shape[1] or alpha.numel() != 1:
        raise _refusal(name, f"the shapes of {module} do not fit together")
    if float(alpha) <= 0:
        raise _refusal(name, f"the alpha of {module} is not positive")
    return Module(down, up, float(alpha))


def describe(file: AdapterFile) -> dict[str, Any]:
    """What a person wants to know about an adapter file, ready for JSON."""
    text = [name for name in file.modules if not name.startswith("lora_unet_")]
    return {
        "architecture": file.metadata.get("modelspec.architecture", "unknown"),
        "base": file.metadata.get("ss_base_model_version", "unknown"),
        "kind": "LoRA",
        "modules": len(file.modules),
        "unet_modules": len(file.modules) - len(text),
        "text_encoder_modules": len(text),
        "ranks": sorted({module.rank for module in file.modules.values()}),
        "alphas": sorted({module.alpha for module in file.modules.values()}),
        "precision": sorted({str(module.down.dtype).removeprefix("torch.") for module in file.modules.values()}),
        "bytes": file.size,
        "title": file.metadata.get("modelspec.title", ""),
        "trigger": file.metadata.get("modelspec.trigger_phrase", ""),
        "steps": file.metadata.get("ss_steps", ""),
        "pictures": file.metadata.get("ss_num_train_images", ""),
        "trained": file.metadata.get("modelspec.date", ""),
        "data_sha256": file.metadata.get("sshs_model_hash", ""),
    }
