"""Read weights from safetensors files, and take their fingerprints.

Scaled fp8 is multiplied out; other quantization and unknown keys are refused.
ComfyUI stores a layer in fp8 with a scale beside it, so that values use the whole range of the type: its weight is
`X.weight` times `X.scale_weight` or, in newer files, `X.weight_scale`. Read as plain fp8, such a model is another one.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from trainer import __version__, foreign_text, paths, storage
from trainer.base_models.registry import TRANSFORMERS
from trainer.base_models.spec import DENOISER_KEYS, NET
from trainer.base_models.versions import versions
from trainer.config import ModelConfig
from trainer.devices import Untyped
from trainer.errors import UserError

WEIGHT = "weight"
SCALES = ("scale_weight", "weight_scale")
MARKS = ("scale_input", "input_scale", "comfy_quant", "scaled_fp8")  # beside scales: of activations, and of the format
SCALABLE = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32)
QUANTIZED = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2")  # as safetensors calls them
# Last parts of keys that the families' parts have.
KNOWN = {
    *(WEIGHT, "bias", "scale", "in_proj_weight", "in_proj_bias", "positional_embedding", "text_projection"),
    *("logit_scale", "position_ids"),
    *(name for transformer in TRANSFORMERS.values() for name in transformer.tensors),
}
UNUSED = tuple(key for transformer in TRANSFORMERS.values() for key in transformer.unused)
LARGE = 2**28  # bytes; a processor hashes about seven times as many in a second
KEPT = 50  # fingerprints of large parts, the latest
LIBRARIES = ("torch", "diffusers", "transformers")  # which load the files with us, and may do so in another way
_PARTS = re.compile(r"(model\.diffusion_model|cond_stage_model|conditioner|text_encoders|first_stage_model|vae)\.")


class Weights:
    """Tensors of a safetensors file by key, with the interface of `safe_open`; scales are not among the keys.

    Keys are without the `net.` that they have in some files of a denoiser alone.
    """

    def __init__(self, file: Untyped, path: Path, dtype: torch.dtype | None) -> None:
        self._file, self._path, self._dtype = file, path, dtype
        self._keys: list[str] = []
        self._scales: dict[str, str] = {}  # by the key of the weight
        keys = file.keys()
        self._in_file = {key.removeprefix(NET): key for key in keys}
        for key in self._in_file:
            layer, _, last = key.rpartition(".")
            if last in SCALES:
                self._scales[f"{layer}.{WEIGHT}" if layer else WEIGHT] = key
            elif last not in MARKS:
                self._keys.append(key)
        for key in self._keys:
            if key.rpartition(".")[2] not in KNOWN and self._changes(key):
                raise self._refusal(key)
        if unmatched := self._scales.keys() - set(self._keys):
            raise self._refusal(self._scales[min(unmatched)])

    def _changes(self, key: str) -> bool:
        """Return True for an unknown key that changes what a model computes: in its denoiser, or of quantized weights.

        Text encoders and VAEs come with what only their training needed.
        """
        is_quantized = self._file.get_slice(self._in_file[key]).get_dtype() in QUANTIZED
        return key.startswith(DENOISER_KEYS) or bool(is_quantized and _PARTS.match(key))

    @property
    def are_scaled(self) -> bool:
        """True if the file has weights that need their scale."""
        return bool(self._scales)

    def keys(self) -> list[str]:
        """List the keys of the weights."""
        return self._keys

    def shape(self, key: str) -> list[int]:
        """Return the shape of a weight."""
        return list(self._file.get_slice(self._in_file[key]).get_shape())

    def get_tensor(self, key: str) -> Tensor:
        """Return a weight, multiplied out, in the precision that the file was opened for; None = that of the file.

        Raises:
            UserError: it is quantized in another way than by one factor, or one for each output.
        """
        tensor: Tensor = self._file.get_tensor(self._in_file[key])
        if key in self._scales:
            scale: Tensor = self._file.get_tensor(self._in_file[self._scales[key]])
            rows = bool(scale.ndim) and scale.numel() == scale.shape[0] == tensor.shape[0]
            if tensor.dtype not in SCALABLE or not (scale.numel() == 1 or rows):
                raise self._refusal(self._scales[key])
            shape = (-1, *[1] * (tensor.ndim - 1))
            tensor = tensor.float() * scale.float().reshape(shape if rows else ())
        return tensor if self._dtype is None else tensor.to(self._dtype)

    def _refusal(self, key: str) -> UserError:
        return UserError(
            "{name} is quantized or holds something that Limner does not know: {key}.",
            "Use the same model in fp16, bf16 or (scaled) fp8.",
            name=self._path.name,
            key=key[:200],
        )


@contextmanager
def opened(path: Path, dtype: torch.dtype | None = None) -> Iterator[Weights]:
    """Open a safetensors file; weights come in `dtype`, None = as they are in the file.

    Raises:
        UserError: it is quantized in a way that Limner does not know.
    """
    with safe_open(path, "pt") as file:
        yield Weights(file, path, dtype)


def read_weights(
    path: Path, dtype: torch.dtype, prefixes: tuple[str, ...] = ("",), but: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Read the weights of a file whose keys begin with one of the prefixes; if none does, all, `but` for some.

    Raises:
        UserError: as `opened`.
    """
    with opened(path, dtype) as tensors:
        keys = [key for key in tensors.keys() if key.startswith(prefixes)] or tensors.keys()  # noqa: SIM118 - not a dict
        return {key: tensors.get_tensor(key) for key in keys if not key.startswith(but)}


def check_all_used(path: Path, denoiser: nn.Module, but: tuple[str, ...]) -> None:
    """Check that a file has no more weights for a denoiser than the denoiser has, `but` for some, by their keys.

    Raises:
        UserError: it has.
    """
    with opened(path) as tensors:
        keys = tensors.keys()
        own = [key for key in keys if key.startswith(DENOISER_KEYS)] or [key for key in keys if not _PARTS.match(key)]
        used = [key for key in own if key.removeprefix(DENOISER_KEYS) not in UNUSED and not key.startswith(but)]
        sizes = {key: math.prod(tensors.shape(key)) for key in used}
    surplus = sum(sizes.values()) - sum(tensor.numel() for tensor in denoiser.state_dict().values())
    if surplus > 0:
        suspect = next((key for key, size in sizes.items() if size == surplus), used[0])
        raise UserError(
            "{name} has {count} values that this kind of model does not have, such as {key}.",
            "It is another model than its other weights say, or something was added to it: use the original file.",
            name=path.name,
            count=surplus,
            key=suspect[:200],
        )


def check_folder(folder: Path) -> None:
    """Check that the weights of a model in diffusers form are plain: diffusers ignores scales.

    Raises:
        UserError: they are quantized.
    """
    for path in folder.glob("*/*.safetensors"):
        with opened(path) as tensors:
            if tensors.are_scaled:
                raise UserError(
                    "{name} is in scaled fp8, which is read from single files only.",
                    "Use the model as a single file, or in fp16 or bf16.",
                    name=path.name,
                )


def fingerprints(model: ModelConfig, parts: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the fingerprints of named parts of a model that was loaded by these settings and has not changed since.

    Those of large parts are kept: they hold as long as all files that the parts may have come from have the same names,
    sizes and times.
    """
    before = _read_fingerprints()
    known = dict(before)
    origin = (
        f"{versions(model.base, model.revision, model.vae)} {model.weights} {[__version__, *map(version, LIBRARIES)]}"
    )
    result = {}
    for name, part in parts.items():
        tensors = part.state_dict().values()
        if sum(tensor.nbytes for tensor in tensors) < LARGE:
            result[name] = fingerprint(part)
            continue
        precisions = sorted({str(tensor.dtype) for tensor in tensors})
        key = hashlib.sha256(f"{origin} {name} {precisions}".encode()).hexdigest()
        result[name] = known.pop(key, "") or fingerprint(part)
        known[key] = result[name]
    if known != before:
        paths.outputs().mkdir(parents=True, exist_ok=True)
        storage.write(_fingerprints_file(), json.dumps(dict(list(known.items())[-KEPT:])))
    return result


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 over the names, shapes and values of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.dim():
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def computed_buffers(part: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield the buffers of a model that are computed instead of loaded: the module that has one, its name and value."""
    for module in part.modules():
        for name in sorted(module._non_persistent_buffers_set):
            if (buffer := module._buffers[name]) is not None:
                yield module, name, buffer


def _read_fingerprints() -> dict[str, str]:
    data = foreign_text.read_own_table(_fingerprints_file())
    return {key: value for key, value in data.items() if isinstance(value, str)}


def _fingerprints_file() -> Path:
    return paths.outputs() / ".fingerprints.json"
