"""Weights of a whole base model on disk, by the names of layers in adapter files; read, and written with changes.

A model is a folder in diffusers form or one file with the original names. Only headers are read at first, then one
tensor at a time, so that a model never has to fit into memory. Nothing is unpickled and no model is built.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer import foreign_text, paths, storage
from trainer.adapter_files import joined, safetensors_reader
from trainer.base_models import detect, layer_names, layer_shapes, transformer_names
from trainer.base_models.layer_names import Component, Place
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.base_models.spec import DENOISER_KEYS, DENOISERS, NET, Shape
from trainer.errors import UserError

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_OWN = (DENOISER_KEYS, NET, "cond_stage_model.", "conditioner.", "text_encoders.")  # of a model, but for its VAE
_OPENCLIP = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_OPENCLIP_LAYERS = "transformer.resblocks."
_PARTS = (".weight", ".bias")
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Weight:
    """Place of a layer's weight or bias: a tensor of a file, maybe transposed, or some rows of a joined one."""

    file: Path
    key: str
    rows: tuple[int, int] | None = None  # the first, and the one after the last
    transposed: bool = False
    swapped: bool = False  # its halves are in the other order than in diffusers

    def of(self, tensor: Tensor) -> Tensor:
        """Return the layer's own rows of the tensor, as diffusers has them."""
        rows = self._view(tensor)
        return rows.roll(len(rows) // 2, 0) if self.swapped else rows

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Write the layer's own rows, as diffusers has them, into the tensor."""
        rows = self._view(tensor)
        values = values.reshape(rows.shape).to(tensor.dtype)
        rows.copy_(values.roll(len(rows) // 2, 0) if self.swapped else values)

    def _view(self, tensor: Tensor) -> Tensor:
        rows = tensor if self.rows is None else tensor[slice(*self.rows)]
        return rows.T if self.transposed else rows


@dataclass(frozen=True)
class Entry:
    """Type and shape of a tensor on disk."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A base model on disk; `headers` lists the tensors of each file.

    `weights` are those of layers by their names, `vectors` those of norms and all biases (`NAME.weight`, `NAME.bias`).
    """

    path: Path
    family: FamilyName
    weights: dict[str, Weight]
    vectors: dict[str, Weight]
    headers: dict[Path, dict[str, Entry]]

    def read(self, name: str) -> Tensor:
        """Read a layer's weight in fp32."""
        weight = self.weights[name]
        return weight.of(self.read_tensor(weight.file, weight.key))

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """Return the shape of a weight or bias."""
        rows, *others = self.headers[weight.file][weight.key].shape
        if weight.rows:
            rows = weight.rows[1] - weight.rows[0]
        return (*others, rows) if weight.transposed else (rows, *others)

    def others(self) -> Iterator[tuple[Path, str]]:
        """List tensors of the denoiser and the text encoders that are no layer's weight: norms, biases, embeddings."""
        taken = {(weight.file, weight.key) for weight in self.weights.values()}
        for file, entries in self.headers.items():
            for key, entry in entries.items():
                own = self.path.is_dir() or key.startswith(_OWN)
                if own and entry.dtype in _DTYPES and (file, key) not in taken:
                    yield file, key

    def read_tensor(self, file: Path, key: str) -> Tensor:
        """Read a tensor by its file and key, in fp32."""
        with safe_open(file, "pt") as tensors:
            tensor: Tensor = tensors.get_tensor(key)
        return tensor.float()


def open_checkpoint(path: Path) -> Checkpoint:
    """Look at a base model.

    Raises:
        UserError: it does not exist, or is not a base model that can be used; it says why.
    """
    family = detect.look(path).family
    weights, vectors = dict[str, Weight](), dict[str, Weight]()
    headers: dict[Path, dict[str, Entry]] = {}
    for place, part, weight in _in_folder(path, headers) if path.is_dir() else _in_file(path, family, headers):
        entry, name = headers[weight.file][weight.key], layer_names.kohya(place, family)
        if entry.dtype not in _DTYPES:
            continue
        if len(entry.shape) == 1:
            vectors[name + part] = weight
        elif part == ".weight" and len(entry.shape) in (2, 4):
            weights[name] = weight
    return Checkpoint(path, family, weights, vectors, headers)


def _read_header(path: Path) -> dict[str, Entry]:
    try:
        with safe_open(path, "pt") as tensors:
            slices = {key: tensors.get_slice(key) for key in tensors.offset_keys()}
            return {key: Entry(part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}
    except (SafetensorError, OSError):
        raise safetensors_reader.refusal(path.name, "it is damaged, or is not a safetensors file") from None


def _in_folder(path: Path, headers: dict[Path, dict[str, Entry]]) -> Iterator[tuple[Place, str, Weight]]:
    for component in (*DENOISERS, "text_encoder", "text_encoder_2", "text_encoder_3"):
        for file in _weight_files(path / component):
            headers[file] = _read_header(file)
            for key in headers[file]:
                name, part = _split(key)
                module = layer_names.read(f"{component}.{name}")
                if part and module.place:
                    yield module.place, part, Weight(file, key)


def _split(key: str) -> tuple[str, str]:
    """Split a key into the name of the layer and `.weight` or `.bias`; "" if it is neither."""
    part = next((part for part in _PARTS if key.endswith(part)), "")
    return key.removesuffix(part), part


def _weight_files(folder: Path) -> list[Path]:
    """List the files of a component's weights: those of its index, or else the one without a variant in its name."""
    if not folder.is_dir():
        return []
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            names = set(foreign_text.read_json(index)["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise safetensors_reader.refusal(index.name, "it is damaged") from None
        return [folder / paths.check_file_name(str(name)) for name in sorted(names)]
    return sorted(folder.glob("*.safetensors"), key=lambda file: (file.name.count("."), file.name))[:1]


def _in_file(
    path: Path, family: FamilyName, headers: dict[Path, dict[str, Entry]]
) -> Iterator[tuple[Place, str, Weight]]:
    headers[path] = _read_header(path)
    if FAMILIES[family].transformer:
        for key in headers[path]:
            yield from _transformer(path, key, headers[path][key].shape, family)
    downsamplers = [
        re.match(rf"{re.escape(DENOISER_KEYS)}input_blocks\.(\d+)\.0\.op\.weight", key) for key in headers[path]
    ]
    per_block = min((int(match[1]) for match in downsamplers if match), default=layer_names.PER_BLOCK)
    for key in headers[path]:
        name, part = _split(key)
        if FAMILIES[family].unet and key.startswith(DENOISER_KEYS):
            original = name.removeprefix(DENOISER_KEYS)
            module = layer_names.read(f"unet.{layer_names.from_original(original, per_block)}")
            if part and module.place:
                yield module.place, part, Weight(path, key)
            continue
        if (large := FAMILIES[family].adapted_encoder) and key.startswith(large.single_file):
            yield from _text(layer_names.T5, key.removeprefix(large.single_file), Weight(path, key), 0)
        for encoder in FAMILIES[family].text_encoders:
            projection = Place(encoder.component, layer_names.TEXT_PROJECTION)
            if key.startswith(encoder.single_file):
                rows = headers[path][key].shape[0] if headers[path][key].shape else 0
                yield from _text(encoder.component, key.removeprefix(encoder.single_file), Weight(path, key), rows)
            projects = f"{encoder.component}:{projection.path}" in layer_shapes.known(family)
            if projects and key == encoder.single_file.removesuffix(_OPENCLIP_LAYERS) + projection.path:
                yield projection, ".weight", Weight(path, key, transposed=True)


def _transformer(path: Path, key: str, shape: Shape, family: FamilyName) -> Iterator[tuple[Place, str, Weight]]:
    """Find the layers whose weight or bias a transformer's tensor is: one, or the parts of a joined one."""
    name, part = _split(key.removeprefix(DENOISER_KEYS).removeprefix(NET))
    layer = transformer_names.from_original(name, family) if part else ""
    shares = transformer_names.parts(layer, family)
    if layer and not shares:
        swapped = joined.is_swapped(layer, shape[0], shape[-1], family) if len(shape) > 1 else False
        yield Place("transformer", layer), part, Weight(path, key, swapped=swapped)
    start = 0
    for own, share in shares.items():
        stop = start + share * shape[0] // sum(shares.values())
        yield Place("transformer", own), part, Weight(path, key, (start, stop))
        start = stop


def _text(component: Component, key: str, weight: Weight, rows: int) -> Iterator[tuple[Place, str, Weight]]:
    """Find the layers whose weight or bias a text encoder's tensor is, under the names of transformers or OpenCLIP."""
    name, part = _split(key)
    module = layer_names.read(f"{component}.{name}")
    if module.place and part:
        yield module.place, part, weight
    layer, _, name = name.partition(".")
    if layer.isdigit() and name in _OPENCLIP:
        yield Place(component, f"encoder.layers.{layer}.{_OPENCLIP[name]}"), part, weight
    elif layer.isdigit() and name.startswith("attn.in_proj_"):
        part = f".{name.removeprefix('attn.in_proj_')}"
        third = rows // 3
        for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
            place = Place(component, f"encoder.layers.{layer}.self_attn.{name}")
            yield place, part, Weight(weight.file, weight.key, (number * third, (number + 1) * third))


def rewrite(checkpoint: Checkpoint, changes: Sequence[tuple[Weight, Change]], out: Path) -> None:
    """Write the model with changed weights, in the same format, precision and files.

    Raises:
        UserError: something exists at `out`, or a changed weight is not finite in the model's precision.
    """
    if out.exists():
        raise UserError("{name} already exists.", "Choose another name.", name=out.name)
    by_tensor: dict[tuple[Path, str], list[tuple[Weight, Change]]] = {}
    for weight, change in changes:
        by_tensor.setdefault((weight.file, weight.key), []).append((weight, change))
    if checkpoint.path.is_file():
        storage.write_chunks(out, _chunks(checkpoint, checkpoint.path, by_tensor))
        return

    def fill(folder: Path) -> None:
        shutil.copytree(checkpoint.path, folder, dirs_exist_ok=True)
        for file in {file for file, _ in by_tensor}:
            storage.write_chunks(folder / file.relative_to(checkpoint.path), _chunks(checkpoint, file, by_tensor))

    storage.write_folder(out, fill)


def _chunks(
    checkpoint: Checkpoint, file: Path, by_tensor: dict[tuple[Path, str], list[tuple[Weight, Change]]]
) -> Iterator[bytes]:
    """Yield a file's bytes: its header as it is, since no shape changes, then its tensors in their order."""
    with file.open("rb") as source:
        length = source.read(8)
        yield length + source.read(int.from_bytes(length, "little"))
    with safe_open(file, "pt") as tensors:
        for key in checkpoint.headers[file]:
            tensor = tensors.get_tensor(key)
            if changes := by_tensor.get((file, key)):
                tensor = _changed(key, tensor.clone(), changes)
            yield tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _changed(key: str, tensor: Tensor, changes: list[tuple[Weight, Change]]) -> Tensor:
    for weight, change in changes:
        weight.put(tensor, change(weight.of(tensor).float()))
    if not tensor.isfinite().all():
        raise UserError("{key} is not finite with the adapter in it.", "Use a lower strength.", key=key)
    return tensor
