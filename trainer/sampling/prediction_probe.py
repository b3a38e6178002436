"""Probe what a base model predicts where its files do not tell.

Stable Diffusion 2.x comes in two variants; other files are marked for zero terminal SNR, which is for v-prediction, but
not for that. The base gets noisy latents, and its output is read in each way, as noise and as v (Salimans & Ho 2022,
https://arxiv.org/abs/2202.00512, section 4); the one with the smaller mean error is how it was trained. The noise
levels are middle and high, since at low ones all readings are nearly the same.
"""

import torch
from torch import Tensor

from trainer.base_models.spec import PredictionType
from trainer.families import Conditioning, Family, on_device
from trainer.rng import generator

LEVELS = (0.3, 0.5, 0.7, 0.9)  # as shares of the timesteps


def probe(family: Family, latents: Tensor, conditioning: Conditioning) -> dict[PredictionType, float]:
    """Set the prediction type with the smallest mean error for latents [b, c, h, w]; return the errors of all."""
    errors: dict[PredictionType, float] = dict.fromkeys(family.spec.variants, 0.0)
    noise = torch.randn(latents.shape, generator=generator("objective")).to(latents.device)
    for level in LEVELS:
        timesteps = torch.full((len(latents),), int(level * family.noise.timesteps), device=latents.device)
        for name in errors:
            family.set_prediction_type(name)  # which can change the noise schedule
            noisy, target = (step(latents, noise, timesteps) for step in (family.noise.add_noise, family.noise.target))
            with torch.no_grad():
                predicted = family.predict(noisy, timesteps, conditioning)
            errors[name] += float((predicted.float() - target).pow(2).mean()) / len(LEVELS)
    family.set_prediction_type(min(errors, key=lambda name: errors[name]))
    return errors


def probe_with_gray(family: Family) -> None:
    """Probe without any images: with an even gray, of which v is small and there is nothing to see but the noise."""
    gray = torch.zeros(1, *family.latent_shape, device=family.device)
    with on_device(family, *family.prompt_encoders().values()), torch.no_grad():
        conditioning = family.encode_prompts([""])
    probe(family, gray, conditioning)
