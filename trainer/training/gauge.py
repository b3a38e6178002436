"""Measures, with the built-in base micro itself, how far pictures are beyond what it can draw; `reach` keeps it."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer import config, families
from trainer.config import ModelConfig
from trainer.data import images, reach
from trainer.errors import UserError
from trainer.families import Family
from trainer.rng import generator
from trainer.training import encode

HALFWAY = 500  # the timestep at which a portrait is told from its outlines, not from its details
NOISES = 2
FLAT = 1e-3  # a variance of pixels below which a picture counts as one color


def complete(folder: Path, family: Family | None = None) -> dict[str, float]:
    """The figures of a data set's sample; those that are missing are made and, where it can be written to, kept."""
    paths = reach.missing(folder)
    pixels = {path.name: picture for path in paths if (picture := read(path)) is not None}
    made: dict[str, float | None] = dict.fromkeys((path.name for path in paths), None)
    if pixels:
        family = family or families.read(ModelConfig(), torch.device("cpu"), torch.float32)
        made.update(zip(pixels, figures(family, torch.stack(list(pixels.values()))), strict=True))
    known = reach.known(folder) | {name: figure for name, figure in made.items() if figure is not None}
    with suppress(OSError):  # of a read-only data set
        if made:
            reach.keep(folder, made)
    return known


@torch.no_grad()
def figures(family: Family, pixels: Tensor) -> list[float]:
    """For each picture [n, 3, H, W] in -1..1: what the autoencoder loses of it, times what the denoiser cannot tell.

    The first is the squared error of the decoded picture over the variance of the picture, 0 to 1. The second is the
    denoiser's error, without words and half way to noise, over that of the best guess which knows nothing but the
    strength of the latents (Wiener's): near 0 for what the model knows well, 1 for what it knows nothing of.
    """
    with families.on_device(family, family.denoiser, *family.encoders().values()):
        latents, _ = family.encode_images(pixels)
        decoded = torch.stack([_tensor(picture) for picture in family.decode_latents(latents)])
        lost = ((decoded - pixels) ** 2).mean((1, 2, 3)) / pixels.var((1, 2, 3)).clamp(min=FLAT)
        return (lost * _unknown(family, latents)).tolist()


def _unknown(family: Family, latents: Tensor) -> Tensor:
    """The denoiser's error [n] for latents [n, c, h, w], over that of a guess from their strength alone."""
    alpha, count = family.alphas_cumprod[HALFWAY], len(latents)
    words = {name: row.expand(count, *row.shape[1:]) for name, row in family.encode_prompts([""]).items()}
    timesteps = torch.full((count,), HALFWAY, device=family.device)
    errors = torch.zeros(count)
    for number in range(NOISES):
        noise = torch.randn((1, *latents.shape[1:]), generator=generator("gauge", number)).to(family.device)
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents  # micro predicts v
        predicted = family.predict(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, timesteps, words).float()
        errors += ((predicted - target) ** 2).mean((1, 2, 3)).cpu() / NOISES
    strength = (latents**2).mean((1, 2, 3))
    return errors / (strength / (alpha * strength + 1 - alpha)).cpu()


def read(path: Path) -> Tensor | None:
    """A picture as micro sees it: the square in its middle, [3, side, side] in -1..1; None if it is no picture."""
    side = config.micro_side()
    try:
        return encode.pixels(images.decode(path.read_bytes()), (side, side), flip=False)
    except (UserError, OSError):
        return None


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
