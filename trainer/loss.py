"""The denoising objective: what is predicted, at which noise level, with which weight."""

import torch
from torch import Tensor
from torch.nn import functional

from trainer.cache import Batch
from trainer.config import TrainingConfig
from trainer.families import Family


def denoising_loss(family: Family, batch: Batch, training: TrainingConfig, rng: torch.Generator) -> Tensor:
    """Mean weighted squared error of the prediction for one batch, at timesteps drawn uniformly.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239 (section 3.4) for epsilon; Salimans & Ho 2022,
    https://arxiv.org/abs/2202.00512 (section 4) for v. Noise is drawn on the CPU, to be the same everywhere.
    """
    latents = batch.mean + batch.std * torch.randn(batch.std.shape, generator=rng).to(family.device)
    noise = torch.randn(latents.shape, generator=rng).to(family.device)
    timesteps = torch.randint(len(family.alphas_cumprod), (len(latents),), generator=rng).to(family.device)
    alpha = family.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = noise if family.objective == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    conditioning = batch.conditioning or family.encode_prompts(batch.captions)
    prediction = family.predict(noisy, timesteps, conditioning).float()
    losses = functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
    if training.min_snr_gamma:
        losses = losses * min_snr_weight(alpha.flatten(), training.min_snr_gamma, family.objective)
    return losses.mean()


def min_snr_weight(alpha: Tensor, gamma: float, objective: str) -> Tensor:
    """Weight [b] by noise level, Hang et al. 2023, https://arxiv.org/abs/2303.09556 (section 3.4).

    min(SNR, gamma) is the weight of an error in the predicted picture; it is divided by SNR for epsilon, and by
    SNR + 1 for v, whose plain error already carries those factors.
    """
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / (snr if objective == "epsilon" else snr + 1)
