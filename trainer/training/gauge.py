"""Measure how far images are beyond what the built-in base Micro can generate, with Micro itself; `reach` stores it."""

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
from trainer.training import augment

HALFWAY = 500  # a timestep at which a portrait shows outlines, no details
NOISES = 2
FLAT = 1e-3  # a variance of pixels below which an image counts as one color


def complete(folder: Path, family: Family | None = None) -> dict[str, float]:
    """Return the figures of a dataset's sample; missing ones are measured and, if the folder is writable, stored."""
    paths = reach.missing(folder)
    pixels = {path.name: image for path in paths if (image := read(path)) is not None}
    measured: dict[str, float | None] = dict.fromkeys((path.name for path in paths), None)
    if pixels:
        family = family or families.read(ModelConfig(), torch.device("cpu"), torch.float32)
        measured.update(zip(pixels, figures(family, torch.stack(list(pixels.values()))), strict=True))
    known = reach.known(folder) | {name: figure for name, figure in measured.items() if figure is not None}
    with suppress(OSError):  # of a read-only dataset
        if measured:
            reach.keep(folder, measured)
    return known


@torch.no_grad()
def figures(family: Family, pixels: Tensor) -> list[float]:
    """Return the VAE's error times the denoiser's for each image [n, 3, H, W] in -1..1.

    The VAE's is the squared error of the decoded image over the variance of the image, 0 to 1. The denoiser's is that
    without a prompt and half way to noise, over that of the best guess which knows nothing but the power of the latents
    (Wiener's): near 0 for images like those it was trained on, 1 for those it knows nothing of.
    """
    with families.on_device(family, family.denoiser, *family.encoders().values()):
        latents, _ = families.encode_images(family, pixels)
        decoded = torch.stack([_tensor(image) for image in families.decode_latents(family, latents)])
        lost = ((decoded - pixels) ** 2).mean((1, 2, 3)) / pixels.var((1, 2, 3)).clamp(min=FLAT)
        return (lost * _denoiser_error(family, latents)).tolist()


def _denoiser_error(family: Family, latents: Tensor) -> Tensor:
    """Return the denoiser's error [n] for latents [n, c, h, w], over that of a guess from their power alone."""
    count = len(latents)
    prompts = {name: row.expand(count, *row.shape[1:]) for name, row in family.encode_prompts([""]).items()}
    timesteps = torch.full((count,), HALFWAY, device=family.device)
    errors = torch.zeros(count)
    for number in range(NOISES):
        noise = torch.randn((1, *latents.shape[1:]), generator=generator("gauge", number)).to(family.device)
        noisy = family.noise.add_noise(latents, noise, timesteps)
        error = family.predict(noisy, timesteps, prompts).float() - family.noise.target(latents, noise, timesteps)
        errors += (error**2).mean((1, 2, 3)).cpu() / NOISES
    snr, power = family.noise.snr(timesteps), (latents**2).mean((1, 2, 3))
    return errors / (power * (snr + 1) / (snr * power + 1)).cpu()  # the guess for v, which Micro predicts


def read(path: Path) -> Tensor | None:
    """Return an image as Micro is trained on it: its middle square, [3, side, side] in -1..1; None if unreadable."""
    side = config.micro_resolution()
    try:
        return augment.pixels(images.decode(path.read_bytes()), (side, side), flip=False)
    except (UserError, OSError):
        return None


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)
