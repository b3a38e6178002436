"""The protocol of a family of base models, the registry of families, and loading a base model.

A family is one file that says how its models are loaded, encode images and prompts, and predict. Nothing here
knows of datasets, losses or files for other programs.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from PIL import Image
from torch import Tensor, nn

from trainer.base_models import detect
from trainer.base_models.detect import TITLES, Base, FamilyName, Objective
from trainer.config import ModelConfig
from trainer.errors import UserError
from trainer.families import loading
from trainer.families.quantize import quantise
from trainer.families.sd import SD, Conditioning
from trainer.families.sdxl import SDXL

# Below this many parameters a second CPU thread costs more than it brings: micro's training step takes 0.109 s with
# one thread and 0.100 s with two, at twice the CPU time.
SMALL = 50_000_000


class Family(Protocol):
    """A diffusion model that can take an adapter."""

    denoiser_targets: ClassVar[tuple[str, ...]]
    text_targets: ClassVar[tuple[str, ...]]
    idle: tuple[str, ...]  # how the names of modules begin whose output is never used, so that they cannot learn
    found: Base
    denoiser: nn.Module
    text_encoders: dict[str, nn.Module]
    objective: Objective
    alphas_cumprod: Tensor
    device: torch.device

    @property
    def architecture(self) -> str:
        """As in `modelspec.architecture` of an adapter file."""

    @property
    def base_version(self) -> str:
        """As in `ss_base_model_version` of an adapter file."""

    @classmethod
    def load(cls, path: Path, found: Base, device: torch.device, dtype: torch.dtype) -> Self:
        """Load the frozen base model that was found at a path into main memory, without any network."""

    def set_objective(self, objective: Objective) -> None:
        """Take the denoiser's output as noise or as v, in training and in pictures."""

    def module_name(self, path: str) -> str:
        """The name of a linear or convolution layer of the denoiser in adapter files, without prefix, by its path."""

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [b, c, h, w] of the scaled latents of pictures [b, 3, H, W] in -1..1."""

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Pictures from scaled latents [b, c, h, w]."""

    def draw_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Scaled latents [c, h, w] of a square picture, the same for the same request."""

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """Encode prompts into conditioning for the denoiser; each row of its tensors belongs to a prompt.

        Of each prompt, `chunks` times as many tokens are seen as the text encoder can take.
        """

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b].

        The conditioning is that of the prompts with, under `sizes`, how large each picture was and where it was
        cropped [b, 6]; a family may leave it unused.
        """

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Number of tokens of a prompt, and how many of them the text encoder can take."""

    def pipeline(self) -> Any:  # noqa: ANN401 - diffusers' pipelines are untyped
        """The live model as a diffusers pipeline, for previews."""

    def encoders(self) -> dict[str, nn.Module]:
        """The modules whose outputs are cached, by name."""


FAMILIES: dict[FamilyName, type[Family]] = {"sd15": SD, "sd21": SD, "sdxl": SDXL}


def load(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> Family:
    """Load a base model onto its device; everything in it is frozen.

    Raises:
        UserError: it is not there, cannot be used, or is of another family than the settings say.
    """
    family = read(model, device, dtype)
    for module in (family.denoiser, *family.encoders().values()):
        module.to(device)
    return family


def precision(model: ModelConfig, device: torch.device) -> str:
    """The precision that serves a base model best on a device: bf16 where the hardware computes in it, else fp32.

    On a CPU with bf16 instructions a step of Stable Diffusion takes less than half the time (9.3 and 4.1 s, 256 pixels,
    one thread); a miniature gains nothing, and in fp32 its figures are the same on all machines.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
    return "bf16" if has and not detect.is_small(loading.locate(model)[0]) else "fp32"


def read(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> Family:
    """Load a base model for a device into main memory, from where its parts are brought there when they are needed.

    Raises:
        UserError: it is not there, cannot be used, or is of another family than the settings say.
    """
    path, revision = loading.locate(model)
    found = replace(detect.look(path), revision=revision)
    if model.family not in ("auto", found.family):
        raise UserError(
            "The base model {name!r} is {family}, but the settings say {other}.",
            "Set the family to 'auto' or {key!r}, or choose another base model.",
            name=path.name,
            family=TITLES[found.family],
            other=TITLES[model.family],
            key=found.family,
        )
    family = FAMILIES[found.family].load(path, found, device, dtype)
    if model.objective != "auto":
        family.set_objective(model.objective)
    quantise(family.denoiser, model.weights)
    if device.type == "cpu" and sum(p.numel() for p in family.denoiser.parameters()) < SMALL:
        torch.set_num_threads(1)
    return family


@contextmanager
def on_device(family: Family, *modules: nn.Module) -> Iterator[None]:
    """Keep parts of a model on its device inside the `with`; those that were not there leave it, after errors too."""
    absent = [module for module in modules if next(module.parameters()).device.type != family.device.type]
    begun = []
    try:
        for module in absent:
            begun.append(module)  # before it moves: where memory runs out, a part of it is there already
            module.to(family.device)
        yield
    finally:
        for module in begun:
            module.to("cpu")


def place(family: Family, *, text_encoder: bool) -> None:
    """Bring to the device what each training step computes with: the rest stays in main memory until it is needed."""
    for module in (family.denoiser, *(family.text_encoders.values() if text_encoder else ())):
        module.to(family.device)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's tensors."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.dim() else b"")
    return total.hexdigest()
