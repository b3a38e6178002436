"""The objective: what is predicted, at which noise level, with which weight, and what has to stay as it was."""

import torch
from torch import Tensor
from torch.nn import functional

from trainer.cache import Batch
from trainer.config import TrainConfig
from trainer.families import Adapter, Conditioning, Family


def training_loss(family: Family, adapter: Adapter, batch: Batch, config: TrainConfig, rng: torch.Generator) -> Tensor:
    """Mean weighted squared error of the prediction for one batch, at timesteps drawn uniformly.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239 (section 3.4) for epsilon; Salimans & Ho 2022,
    https://arxiv.org/abs/2202.00512 (section 4) for v. To it comes the squared difference between the prediction and
    the base's own on the noisy pictures that are to be preserved. Noise is drawn on the CPU, to be the same everywhere.
    """
    latents = batch.mean + batch.std * torch.randn(batch.std.shape, generator=rng).to(family.device)
    noise = torch.randn(latents.shape, generator=rng).to(family.device)
    timesteps = torch.randint(len(family.alphas_cumprod), (len(latents),), generator=rng).to(family.device)
    alpha = family.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = noise if family.objective == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    conditioning = batch.conditioning or encode(family, batch, batch.captions)

    count, kept = len(latents), len(batch.preserved)
    if kept:
        # The base's answer is the target, so both are asked about the same noisy pictures in the same step.
        pictures = latents[:kept] if batch.preserved_latents is None else batch.preserved_latents
        asked = alpha[:kept].sqrt() * pictures + (1 - alpha[:kept]).sqrt() * noise[:kept]
        with torch.no_grad(), adapter.off():
            plain = batch.preserved_conditioning or encode(family, batch, batch.preserved)
            unchanged = family.predict(asked, timesteps[:kept], plain).float()
        conditioning = _joined(conditioning, batch.preserved_conditioning or encode(family, batch, batch.preserved))
        noisy, timesteps = torch.cat([noisy, asked]), torch.cat([timesteps, timesteps[:kept]])
    prediction = family.predict(noisy, timesteps, conditioning).float()

    losses = _squared_error(prediction[:count], target)
    if config.training.min_snr_gamma:
        losses = losses * min_snr_weight(alpha.flatten(), config.training.min_snr_gamma, family.objective)
    total = losses.sum()
    if kept:
        total = total + config.preservation.weight * _squared_error(prediction[count:], unchanged).sum()
    return total / count


def encode(family: Family, batch: Batch, prompts: tuple[str, ...]) -> Conditioning:
    """The conditioning of the first pictures of a batch under these prompts."""
    sizes = {} if batch.sizes is None else {"sizes": batch.sizes[: len(prompts)]}
    return {**family.encode_prompts(prompts), **sizes}


def _squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over each picture, as [b]."""
    return functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))


def _joined(first: Conditioning, second: Conditioning) -> Conditioning:
    return {key: torch.cat([rows, second[key]]) for key, rows in first.items()}


def min_snr_weight(alpha: Tensor, gamma: float, objective: str) -> Tensor:
    """Weight [b] by noise level, Hang et al. 2023, https://arxiv.org/abs/2303.09556 (section 3.4).

    min(SNR, gamma) is the weight of an error in the predicted picture; it is divided by SNR for epsilon, and by
    SNR + 1 for v, whose plain error already carries those factors.
    """
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / (snr if objective == "epsilon" else snr + 1)
