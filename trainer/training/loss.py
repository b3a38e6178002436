"""The objective: what is predicted, at which noise level, with which weight, and what has to stay as it was."""

import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import TrainConfig
from trainer.config.training import ObjectiveConfig
from trainer.families import Adapter, Conditioning, Family
from trainer.training.batches import Batch


def training_loss(family: Family, adapter: Adapter, batch: Batch, config: TrainConfig, rng: torch.Generator) -> Tensor:
    """Mean weighted error of the prediction for one batch of noisy pictures.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239 (section 3.4) for epsilon; Salimans & Ho 2022,
    https://arxiv.org/abs/2202.00512 (section 4) for v. To it comes the squared difference between the prediction and
    the base's own on the noisy pictures that are to be preserved. Noise is drawn on the CPU, to be the same everywhere,
    and for the whole batch, so that the losses of its parts add up to that of the whole.
    """
    objective, chunks = config.objective, config.captions.chunks

    def drawn(*shape: int) -> Tensor:
        return torch.randn((batch.whole, *shape[1:]), generator=rng)[batch.rows].to(family.device)

    latents = batch.mean + batch.std * drawn(*batch.std.shape)
    noise = drawn(*latents.shape)
    timesteps = draw_timesteps(batch.whole, len(family.alphas_cumprod), objective, rng)[batch.rows].to(family.device)
    if objective.noise_offset:
        noise = noise + objective.noise_offset * drawn(*latents.shape[:2], 1, 1)
    seen = noise + objective.input_perturbation * drawn(*latents.shape) if objective.input_perturbation else noise
    alpha = family.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * seen
    target = noise if family.objective == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    count, kept = len(latents), len(batch.preserved)
    if kept:
        # The base's answer is the target, so both are asked about the same noisy pictures in the same step.
        pictures = latents[:kept] if batch.preserved_latents is None else batch.preserved_latents
        asked = alpha[:kept].sqrt() * pictures + (1 - alpha[:kept]).sqrt() * noise[:kept]
        with torch.no_grad(), adapter.off():
            unchanged = family.predict(asked, timesteps[:kept], batch.preserved_conditioning or {}).float()
        noisy, timesteps = torch.cat([noisy, asked]), torch.cat([timesteps, timesteps[:kept]])
    prediction = family.predict(noisy, timesteps, conditioned(family, batch, chunks)).float()

    share = timesteps[:count].float() / (len(family.alphas_cumprod) - 1)
    errors = error(prediction[:count], target, share, objective)
    losses = (errors if batch.mask is None else masked(errors, batch.mask, objective.outside)).mean(dim=(1, 2, 3))
    if objective.weighting != "none":
        losses = losses * weight(alpha.flatten(), objective, family.objective)
    total = losses.sum()
    if kept:
        distance = functional.mse_loss(prediction[count:], unchanged, reduction="none").mean(dim=(1, 2, 3))
        total = total + config.preservation.weight * distance.sum()
    return batch.weight * total / batch.whole


def conditioned(family: Family, batch: Batch, chunks: int) -> Conditioning:
    """The conditioning of a batch's captions, and after them of its prompts to preserve.

    What the cache does not have is encoded, all in one pass and each different prompt once.
    """
    if batch.conditioning:
        cached = [one for one in (batch.conditioning, batch.preserved_conditioning) if one]
        return {key: torch.cat([one[key] for one in cached]) for key in batch.conditioning}
    prompts = (*batch.captions, *batch.preserved)
    different = tuple(dict.fromkeys(prompts))
    encoded = family.encode_prompts(different, chunks)
    if len(different) < len(prompts):
        rows = [different.index(prompt) for prompt in prompts]
        encoded = {name: values[rows] for name, values in encoded.items()}
    if batch.sizes is None:
        return encoded
    return {**encoded, "sizes": torch.cat([batch.sizes, batch.sizes[: len(batch.preserved)]])}


def draw_timesteps(count: int, total: int, objective: ObjectiveConfig, rng: torch.Generator) -> Tensor:
    """Timesteps [count] between the first and the last that are trained.

    Logit-normal is Esser et al. 2024, https://arxiv.org/abs/2403.03206 (section 3.1): the sigmoid of a normal number.
    """
    first, last = min(objective.first_timestep, total - 1), min(objective.last_timestep, total - 1)
    if objective.timesteps == "uniform":
        return torch.randint(first, last + 1, (count,), generator=rng)
    share = torch.sigmoid(objective.logit_mean + objective.logit_std * torch.randn(count, generator=rng))
    return (first + (share * (last + 1 - first)).long()).clamp(max=last)


def error(prediction: Tensor, target: Tensor, share: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Error of each value; `share` [b] is the timestep over the last there is.

    Pseudo-Huber is 2 c (sqrt(d^2 + c^2) - c): d^2 for small d, 2 c |d| for large. Scheduled, c falls from 1 to the
    setting as c^share: Khrapov et al. 2024, https://arxiv.org/abs/2403.16728 (section 4).
    """
    if objective.measure == "squared":
        return functional.mse_loss(prediction, target, reduction="none")
    power = share if objective.measure == "scheduled-huber" else torch.ones_like(share)
    c = (objective.huber**power).view(-1, 1, 1, 1)
    return 2 * c * (((prediction - target) ** 2 + c**2).sqrt() - c)


def masked(errors: Tensor, mask: Tensor, outside: float) -> Tensor:
    """Errors [b, c, h, w] weighted by masks [b, 1, h, w] in 0..1; the mean weight of a picture stays 1."""
    weights = outside + (1 - outside) * mask
    return errors * weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)


def weight(alpha: Tensor, objective: ObjectiveConfig, predicted: str) -> Tensor:
    """Weight [b] of the loss by noise level, for the cumulative alphas [b] of the timesteps.

    Each is known as a weight of an error in the predicted picture: min(SNR, gamma), Hang et al. 2023,
    https://arxiv.org/abs/2303.09556 (section 3.4); sqrt(SNR), Yu et al. 2023, https://arxiv.org/abs/2310.08442
    (section 3.2); SNR / (1 + SNR)^gamma, Choi et al. 2022, https://arxiv.org/abs/2204.00227 (section 3.2 with k = 1).
    It is divided by SNR for epsilon and by SNR + 1 for v, whose plain errors already carry those factors.
    """
    snr = alpha / (1 - alpha)
    if objective.weighting == "min-snr":
        of_picture = snr.clamp(max=objective.min_snr_gamma)
    elif objective.weighting == "debiased":
        of_picture = snr.sqrt()
    else:
        of_picture = snr / (1 + snr) ** objective.p2_gamma
    return of_picture / (snr if predicted == "epsilon" else snr + 1)
