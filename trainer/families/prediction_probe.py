"""Probe what a base model predicts where its files do not tell: Stable Diffusion 2.x comes in two kinds.

The base itself is asked. It is shown noisy pictures, and its answers are read both ways, as noise and as v (Salimans &
Ho 2022, https://arxiv.org/abs/2202.00512, section 4); the reading with the smaller mean error is how it was trained.
The noise levels are middle and high ones, for at low ones both readings are nearly the same.
"""

import torch
from torch import Tensor

from trainer.base_models.detect import Objective
from trainer.families import Conditioning, Family
from trainer.rng import generator

LEVELS = (0.3, 0.5, 0.7, 0.9)  # as parts of the noise schedule


def ask(family: Family, latents: Tensor, conditioning: Conditioning) -> dict[Objective, float]:
    """Set the objective of a base model by the mean errors of its answers about latents [b, c, h, w]; returns them."""
    errors: dict[Objective, float] = {"epsilon": 0.0, "v_prediction": 0.0}
    noise = torch.randn(latents.shape, generator=generator("objective")).to(latents.device)
    for level in LEVELS:
        timesteps = torch.full((len(latents),), int(level * len(family.alphas_cumprod)), device=latents.device)
        alpha = family.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        with torch.no_grad():
            answer = family.predict(noisy, timesteps, conditioning).float()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        errors["epsilon"] += float((answer - noise).pow(2).mean()) / len(LEVELS)
        errors["v_prediction"] += float((answer - velocity).pow(2).mean()) / len(LEVELS)
    family.set_objective(min(errors, key=lambda name: errors[name]))
    return errors


def ask_about_grey(family: Family) -> None:
    """The same without any pictures: about an even grey, whose v is little and whose noise is all there is to see."""
    side = family.pipeline().unet.config.sample_size
    grey = torch.zeros(1, family.pipeline().unet.config.in_channels, side, side, device=family.device)
    with torch.no_grad():
        ask(family, grey, family.encode_prompts([""]))
