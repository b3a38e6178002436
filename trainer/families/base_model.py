"""Load a base model of any family, move its parts between main memory and its device, encode and decode images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePath
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from trainer import devices
from trainer.adapter_files import reader
from trainer.adapter_files.reader import AdapterFile
from trainer.base_models import adapter_location, detect, layer_names, vae
from trainer.base_models.registry import FAMILIES
from trainer.base_models.spec import FamilySpec
from trainer.config import ModelConfig
from trainer.devices import Precision
from trainer.errors import UserError, is_out_of_memory
from trainer.families import frozen_adapter
from trainer.families.adapter import named
from trainer.families.family import Family
from trainer.families.files import classes, loading, outlines
from trainer.families.frozen_adapter import FrozenAdapter
from trainer.families.hardware import gradient_checkpointing, offload
from trainer.families.hardware.quantize import quantize

Result = TypeVar("Result")
BYTES_PER_PIXEL = 4096  # that the VAE takes in fp32: 3072 to decode, as tests/fake_cuda counts, and what kernels need
ENCODING = 2**29  # bytes at most that a large text encoder computes in beside its weights
# Below this many parameters a second CPU thread costs more than it brings: micro's training step takes 0.109 s with
# one thread and 0.100 s with two, at twice the CPU time.
SMALL = 50_000_000


def load(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> Family:
    """Load a base model onto its device; everything in it is frozen.

    Raises:
        UserError: it does not exist, cannot be used, or is of another family than the settings say.
    """
    family = read(model, device, dtype)
    place(family, text_encoder=True, vae=True)
    return family


def precision(model: ModelConfig, device: torch.device) -> Precision:
    """Return the best precision for a base model on a device.

    On a CPU that is faster in bf16 a step of Stable Diffusion takes less than half the time (9.3 and 4.1 s, 256 pixels,
    one thread); a miniature gains nothing, and in fp32 its results are the same on all machines.
    """
    best = devices.best_precision(device)
    if best == "fp32" or devices.is_accelerator(device):
        return best
    return "fp32" if detect.is_small(detect.locate(model.base, model.revision)[0]) else best


def read(model: ModelConfig, device: torch.device, dtype: torch.dtype, *, large_encoder: bool = True) -> Family:
    """Load a base model for a device into main memory, from where its parts are moved there when they are needed.

    The training adapter in the settings is added to it, but images are generated without. Without its large text
    encoder it generates images from prompts that are encoded already.

    Raises:
        UserError: it does not exist, cannot be used, or is of another family than the settings say; or the training
            adapter is not there, or does not fit.
    """
    path, revision = detect.locate(model.base, model.revision)
    base = replace(detect.look(path), revision=revision)
    if model.family != "auto" and model.family != base.family:
        raise UserError(
            "The base model {name!r} is {family}, but the settings say {other}.",
            "Set the family to 'auto' or {key!r}, or choose another base model.",
            name=path.name,
            family=FAMILIES[base.family].title,
            other=FAMILIES[model.family].title,
            key=base.family,
        )
    if model.prediction_type not in ("auto", *FAMILIES[base.family].variants):
        raise UserError(
            "The base model {name!r} does not predict {predicted!r}.",
            "Set the objective to 'auto'.",
            name=path.name,
            predicted=model.prediction_type,
        )
    separate = vae.find(path, base, model.vae)
    family = _model_class(FAMILIES[base.family]).load(path, base, separate, device, dtype, large_encoder=large_encoder)
    if model.prediction_type != "auto":
        family.set_prediction_type(model.prediction_type)
    family.set_clip_skip(model.clip_skip)
    family.set_guidance(model.guidance)
    quantize(family.denoiser, model.weights, family.spec.modules.quantized, family.spec.title)
    large = family.spec.encoder_of(family.base.size)
    if large and (encoder := family.prompt_encoders().get(large.file_name)):
        quantize(encoder, model.weights, (large.blocks,), family.spec.title)
    if model.training_adapter:
        frozen(family, model.training_adapter).add()
    if not devices.is_accelerator(device) and sum(p.numel() for p in family.denoiser.parameters()) < SMALL:
        torch.set_num_threads(1)
    return family


def outline(model: ModelConfig) -> Family:
    """Return a base model as its configs describe it, without weights: for the names and shapes of its layers.

    Raises:
        UserError: it does not exist, or a config is missing or damaged.
    """
    path, _revision = detect.locate(model.base, model.revision)
    base = detect.look(path)
    pipeline = outlines.build(path, base)
    kind = _model_class(FAMILIES[base.family])
    family = kind(pipeline, base, devices.NOWHERE, single_file=path.is_file())
    family.set_clip_skip(model.clip_skip)
    return family


def _model_class(spec: FamilySpec) -> type[Family]:
    family: type[Family] = classes.of_family(spec, spec.model)
    return family


def read_other(name: str, model: ModelConfig, family: Family) -> Family:
    """Load another model of a base model's family into main memory, to generate images from its encoded prompts.

    It has the VAE and the precision that the settings name for the base model, and no adapter.

    Raises:
        UserError: it cannot be used, or its layers are not those of the base model.
    """
    changes = {"base": name, "revision": "", "family": "auto", "prediction_type": "auto", "training_adapter": ""}
    dtype = loading.denoiser(family.pipeline()).dtype
    other = read(model.model_copy(update=changes), family.device, dtype, large_encoder=False)
    if _sizes(other) != _sizes(family):
        raise UserError(
            "The preview model {name!r} has other layers than the base model.",
            "Choose one of the same family and size.",
            name=PurePath(name).name,
        )
    return other


def frozen(family: Family, name: str, strength: float = 1.0) -> FrozenAdapter:
    """Return an adapter file, by its path or name on the hub, as what it changes in a denoiser that has no adapter yet.

    Raises:
        UserError: the file is missing, damaged, or does not fit.
    """
    path = adapter_location.find(name)
    return fit(family, reader.read(path), path.name, strength)


def fit(family: Family, file: AdapterFile, title: str, strength: float = 1.0) -> FrozenAdapter:
    """Return an adapter file as what it changes in a denoiser that has no adapter yet.

    Raises:
        UserError: it does not fit.
    """
    dtype = loading.denoiser(family.pipeline()).dtype
    return frozen_adapter.fit(_layers(family), file, title, dtype, strength)


def _sizes(family: Family) -> dict[str, tuple[int, int]]:
    return {name: frozen_adapter.size(layer) for name, layer in _layers(family).items()}


def _layers(family: Family) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the linear layers and convolutions of the denoiser by their names in adapter files."""
    return {
        name: layer
        for name, _owner, _attribute, layer in named(family)
        if isinstance(layer, nn.Linear | nn.Conv2d) and name.startswith(layer_names.DENOISER_PREFIXES)
    }


@contextmanager
def on_device(family: Family, *modules: nn.Module) -> Iterator[None]:
    """Keep parts of a model on its device inside the `with`; those that were elsewhere leave it, after errors too."""
    elsewhere = [module for module in modules if next(module.parameters()).device.type != family.device.type]
    moved = []
    try:
        for module in elsewhere:
            moved.append(module)  # before it moves: if memory runs out, a part of it is there already
            _bring(family, module)
        yield
    finally:
        for module in moved:
            offload.move(module, "cpu")


def place(family: Family, *, text_encoder: bool, vae: bool = False) -> None:
    """Move what is needed all the time to the device; the rest stays in main memory until it is needed."""
    for module in (family.denoiser, *(family.prompt_encoders().values() if text_encoder else ())):
        _bring(family, module)
    if vae:
        family.encoders()["vae"].to(family.device)


def _bring(family: Family, module: nn.Module) -> None:
    """Move a part of a model to its device; of one that is too large for it, the weights of its blocks wait."""
    if module is family.denoiser and offload.is_too_large(module, family.device):
        gradient_checkpointing.recompute(family, "off", "all")
    elif (blocks := family.large_blocks(module)) and _must_wait(module, family.device):
        offload.offload(module, blocks, family.device, pinned=False)
    else:
        offload.move(module, family.device)


def _must_wait(encoder: nn.Module, device: torch.device) -> bool:
    """Return True if a large text encoder is too large for a device, and its blocks do not wait already."""
    return not offload.is_offloaded(encoder) and offload.is_too_large(encoder, device, beside=ENCODING)


def encode_images(family: Family, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encode images [b, 3, H, W] in -1..1: mean and standard deviation [b, c, H/8, W/8] of their scaled latents."""
    precision = encoding_precision(family)
    return _in_tiles_if_needed(
        family, pixels[:, 0].numel(), lambda tiled: family.encode_latents(pixels, precision, tiled=tiled)
    )


@torch.no_grad()
def _in_tiles_if_needed(family: Family, pixels: int, compute: Callable[[bool], Result]) -> Result:
    """Encode or decode so many pixels in overlapping tiles, if there is too little memory for all at once.

    The seams are blended; what is encoded so differs less than two encodings of one image do.
    """
    tiled = pixels * BYTES_PER_PIXEL > devices.unused_memory(family.device)
    try:
        return compute(tiled)
    except RuntimeError as error:
        if tiled or not is_out_of_memory(error):
            raise
    devices.trim()
    return compute(True)


def encoding_precision(family: Family) -> torch.dtype:
    """Return the precision for encoding images: fp32, but bf16 on a CPU whose denoiser is in it (a fifth of the time).

    The latents then differ by a hundredth of their spread, which is less than two encodings of one image do.
    """
    denoiser: Any = family.denoiser
    return torch.bfloat16 if family.device.type == "cpu" and denoiser.dtype == torch.bfloat16 else torch.float32


def decode_latents(family: Family, latents: Tensor) -> list[Image.Image]:
    """Decode scaled latents [b, c, h, w] to images."""
    processor = family.pipeline().image_processor
    images: list[Image.Image] = processor.postprocess(decode_to_pixels(family, latents), output_type="pil")
    return images


def decode_to_pixels(family: Family, latents: Tensor) -> Tensor:
    """Decode scaled latents [b, c, h, w] to pixels [b, 3, H, W] in -1..1, in fp32 as the decoder overflows in fp16."""
    pixels = latents[:, 0].numel() * family.pipeline().vae_scale_factor ** 2
    return _in_tiles_if_needed(family, pixels, lambda tiled: family.decode_latents(latents.float(), tiled=tiled))
