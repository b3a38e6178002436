"""The weights of a whole base model on disk, by the names of layers in adapter files; read and rewritten in place.

A model is a folder in diffusers form or one file with the original names. Only headers are read at first; tensors one
at a time, so that a model never has to fit into memory. Nothing is unpickled and no model is built.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer import paths, storage
from trainer.adapter_files import safetensors_reader
from trainer.adapter_files.safetensors_reader import Entry
from trainer.base_models import detect, layer_names
from trainer.base_models.detect import FamilyName
from trainer.base_models.layer_names import Component, Place
from trainer.errors import UserError

MAX_HEADER = 64 * 2**20
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_UNET = "model.diffusion_model."
# Where a single file keeps its text encoders, under the names of transformers and under those of OpenCLIP.
_TEXTS: dict[FamilyName, tuple[tuple[Component, str], ...]] = {
    "sd15": (("text_encoder", "cond_stage_model.transformer."),),
    "sd21": (("text_encoder", "cond_stage_model.model.transformer.resblocks."),),
    "sdxl": (
        ("text_encoder", "conditioner.embedders.0.transformer."),
        ("text_encoder_2", "conditioner.embedders.1.model.transformer.resblocks."),
    ),
}
_OPENCLIP = {
    "attn.out_proj.weight": "self_attn.out_proj", "mlp.c_fc.weight": "mlp.fc1", "mlp.c_proj.weight": "mlp.fc2",
}  # fmt: skip
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Weight:
    """Place of a layer's weight: a tensor of a file, or a third of the rows of a joined one."""

    file: Path
    key: str
    third: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The layer's own part of the tensor; a view."""
        return tensor if self.third is None else tensor.chunk(3)[self.third]


@dataclass(frozen=True)
class Checkpoint:
    """A base model on disk."""

    path: Path
    family: FamilyName
    weights: dict[str, Weight]
    headers: dict[Path, tuple[int, dict[str, Entry]]]

    def read(self, name: str) -> Tensor:
        """A layer's weight in fp32."""
        weight = self.weights[name]
        start, entries = self.headers[weight.file]
        return weight.of(_read(weight.file, start, entries[weight.key])).float()

    def others(self) -> Iterator[tuple[Path, str]]:
        """Tensors of the UNet and the text encoders that are no layer's weight: norms, biases, embeddings."""
        taken = {(weight.file, weight.key) for weight in self.weights.values()}
        for file, (_, entries) in self.headers.items():
            for key, entry in entries.items():
                own = self.path.is_dir() or key.startswith((_UNET, "cond_stage_model.", "conditioner."))
                if own and entry.dtype in _DTYPES and (file, key) not in taken:
                    yield file, key

    def read_tensor(self, file: Path, key: str) -> Tensor:
        """A tensor by its file and key, in fp32."""
        start, entries = self.headers[file]
        return _read(file, start, entries[key]).float()


def open_checkpoint(path: Path) -> Checkpoint:
    """Look at a base model.

    Raises:
        UserError: it is not there, or no base model that can be used; it says why.
    """
    family = detect.look(path).family
    weights: dict[str, Weight] = {}
    headers: dict[Path, tuple[int, dict[str, Entry]]] = {}
    places = _in_folder(path, headers) if path.is_dir() else _in_file(path, family, headers)
    for place, weight in places:
        known = headers[weight.file][1][weight.key]
        if known.dtype in _DTYPES and len(known.shape) in (2, 4):
            weights[layer_names.kohya(place, family)] = weight
    return Checkpoint(path, family, weights, headers)


def _header(path: Path, headers: dict[Path, tuple[int, dict[str, Entry]]]) -> dict[str, Entry]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise safetensors_reader.refusal(path.name, "it is no safetensors file, or its header is damaged")
        entries, _ = safetensors_reader.header(file.read(length), path.name)
    safetensors_reader.check_tiling(entries, size - 8 - length, path.name)
    headers[path] = (8 + length, entries)
    return entries


def _in_folder(path: Path, headers: dict[Path, tuple[int, dict[str, Entry]]]) -> Iterator[tuple[Place, Weight]]:
    components: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2")
    for component in components:
        for file in _weight_files(path / component):
            for key in _header(file, headers):
                module = layer_names.read(f"{component}.{key.removesuffix('.weight')}")
                if key.endswith(".weight") and module.place:
                    yield module.place, Weight(file, key)


def _weight_files(folder: Path) -> list[Path]:
    """The weights of a component: those of the index if there is one, else the one file without a variant's name."""
    if not folder.is_dir():
        return []
    for index in sorted(folder.glob("*.safetensors.index.json")):
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / paths.checked_file_name(str(name)) for name in sorted(names)]
    found = sorted(folder.glob("*.safetensors"), key=lambda file: (file.name.count("."), file.name))
    return found[:1]


def _in_file(
    path: Path, family: FamilyName, headers: dict[Path, tuple[int, dict[str, Entry]]]
) -> Iterator[tuple[Place, Weight]]:
    entries = _header(path, headers)
    samplers = [re.match(rf"{re.escape(_UNET)}input_blocks\.(\d+)\.0\.op\.weight", key) for key in entries]
    per_block = min((int(found[1]) for found in samplers if found), default=layer_names.PER_BLOCK)
    for key in entries:
        if key.startswith(_UNET) and key.endswith(".weight"):
            path_there = layer_names.from_original(key.removeprefix(_UNET).removesuffix(".weight"), per_block)
            module = layer_names.read(f"unet.{path_there}")
            if module.place:
                yield module.place, Weight(path, key)
            continue
        for component, start in _TEXTS[family]:
            if key.startswith(start):
                yield from _text(component, key.removeprefix(start), Weight(path, key))


def _text(component: Component, key: str, weight: Weight) -> Iterator[tuple[Place, Weight]]:
    module = layer_names.read(f"{component}.{key.removesuffix('.weight')}")
    if module.place and key.endswith(".weight"):
        yield module.place, weight
    layer, _, part = key.partition(".")
    if layer.isdigit() and part in _OPENCLIP:
        yield Place(component, f"encoder.layers.{layer}.{_OPENCLIP[part]}"), weight
    elif layer.isdigit() and part == "attn.in_proj_weight":
        for third, name in enumerate(("q_proj", "k_proj", "v_proj")):
            yield Place(component, f"encoder.layers.{layer}.self_attn.{name}"), Weight(weight.file, weight.key, third)


def _read(path: Path, start: int, entry: Entry) -> Tensor:
    with path.open("rb") as file:
        file.seek(start + entry.begin)
        data = bytearray(file.read(entry.end - entry.begin))
    if not data:
        return torch.zeros(entry.shape)
    return torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(entry.shape)


def rewrite(checkpoint: Checkpoint, changes: dict[str, Change], out: Path) -> None:
    """Write the model anew with changed weights, in the form, precision and files that it has.

    Raises:
        UserError: there is something at `out` already, or a changed weight is not finite in the model's precision.
    """
    if out.exists():
        raise UserError("There is something at {name} already.", "Choose another name.", name=out.name)
    by_tensor: dict[tuple[Path, str], list[tuple[Weight, Change]]] = {}
    for name, change in changes.items():
        weight = checkpoint.weights[name]
        by_tensor.setdefault((weight.file, weight.key), []).append((weight, change))
    if checkpoint.path.is_file():
        storage.write_chunks(out, _chunks(checkpoint, checkpoint.path, by_tensor))
        return

    def fill(folder: Path) -> None:
        shutil.copytree(checkpoint.path, folder, dirs_exist_ok=True)
        for file in {file for file, _ in by_tensor}:
            there = folder / file.relative_to(checkpoint.path)
            storage.write_chunks(there, _chunks(checkpoint, file, by_tensor))

    storage.write_folder(out, fill)


def _chunks(
    checkpoint: Checkpoint, file: Path, by_tensor: dict[tuple[Path, str], list[tuple[Weight, Change]]]
) -> Iterator[bytes]:
    """A file's bytes: its header as it is, for no shape changes, then its tensors in their order."""
    start, entries = checkpoint.headers[file]
    with file.open("rb") as source:
        yield source.read(start)
        for key, entry in sorted(entries.items(), key=lambda one: (one[1].begin, one[1].end)):
            data = source.read(entry.end - entry.begin)
            if (file, key) in by_tensor:
                tensor = torch.frombuffer(bytearray(data), dtype=_DTYPES[entry.dtype]).reshape(entry.shape)
                for weight, change in by_tensor[file, key]:
                    part = weight.of(tensor)
                    part.copy_(change(part.float()).reshape(part.shape).to(tensor.dtype))
                if not tensor.isfinite().all():
                    raise UserError("{key} is not finite with the adapter in it.", "Use a lower strength.", key=key)
                data = tensor.view(torch.uint8).numpy().tobytes()
            yield data
