"""Training loss: error of the prediction, weighted by noise level, and output preservation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer import devices
from trainer.config import TrainConfig
from trainer.config.objective import ObjectiveConfig
from trainer.families import Adapter, Conditioning, Family, stacked
from trainer.families.noise import NoiseSchedule
from trainer.training.inputs.batches import Batch

# Where noise hides everything, or nothing, a weight by the SNR would be infinite; sd-scripts has the same upper bound.
LEAST_SNR, MOST_SNR = 1e-4, 1000.0


def training_loss(family: Family, adapter: Adapter, batch: Batch, config: TrainConfig, rng: torch.Generator) -> Tensor:
    """Return the mean weighted error of the prediction for one batch, plus that of output preservation.

    The latter is the error against the prediction without the adapter, for latents and prompts whose images should not
    change. Both are measured and weighted in the same way, so that no noise level belongs to one of them alone.
    """
    objective, schedule = config.objective, family.noise
    noised = add_noise(family, batch, objective, rng)
    count, base = len(noised.latents) * batch.is_trained, batch.base_prediction
    inputs, timesteps = [noised.latents] * batch.is_trained, [noised.timesteps] * batch.is_trained
    if noised.preserved is not None:
        if base is None:
            base = predict_base(family, adapter, [(batch, noised)])[0]
        inputs.append(noised.preserved)
        timesteps.append(noised.preserved_timesteps)
    conditioning = conditioned(family, batch, config.captions.chunks)
    prediction = family.predict(torch.cat(inputs), torch.cat(timesteps), conditioning).float()

    total = torch.zeros((), device=prediction.device)
    if count:
        errors = error(prediction[:count], noised.target, noised.timesteps / (schedule.timesteps - 1), objective)
        if batch.mask is not None:
            errors = masked(errors, batch.mask, objective.unmasked_weight)
        total = total + weighted(errors, schedule, noised.timesteps, objective).sum()
    if base is not None:
        levels = noised.preserved_timesteps
        change = error(prediction[count:], base, levels / (schedule.timesteps - 1), objective)
        total = total + config.preservation.weight * weighted(change, schedule, levels, objective).sum()
    return batch.weight * total / batch.whole


@dataclass(frozen=True)
class Noised:
    """Inputs of a prediction and its target: latents and target [b, c, h, w], timesteps [b].

    `preserved` are the latents to preserve [k, c, h, w], None if there are none, and `preserved_timesteps` [k] theirs.
    """

    latents: Tensor
    target: Tensor
    timesteps: Tensor
    preserved: Tensor | None
    preserved_timesteps: Tensor


def add_noise(family: Family, batch: Batch, objective: ObjectiveConfig, rng: torch.Generator) -> Noised:
    """Add noise to the latents of a batch, at timesteps that are drawn as well.

    It is drawn on the CPU, to be the same everywhere, and for the whole batch, so that the losses of micro-batches add
    up to the batch's.
    """
    schedule = family.noise

    def draw(*shape: int) -> Tensor:
        return devices.send(torch.randn((batch.whole, *shape[1:]), generator=rng)[batch.rows], family.device)

    latents = batch.mean + batch.std * draw(*batch.std.shape)
    noise = draw(*latents.shape)
    drawn = draw_timesteps(batch.whole, schedule, objective, rng, latents.shape)[batch.rows]
    timesteps = devices.send(drawn, family.device)
    if objective.noise_offset:
        noise = noise + objective.noise_offset * draw(*latents.shape[:2], 1, 1)
    perturbed = noise
    if objective.input_perturbation:
        perturbed = noise + objective.input_perturbation * draw(*latents.shape)
    count, preserved = len(batch.preserved), None
    levels = timesteps[:count]
    if batch.preserved_from is not None:
        least = batch.preserved_from * (schedule.timesteps - 1)
        levels = (least + (1 - batch.preserved_from) * levels).to(levels.dtype)
    if count:
        original = latents[:count] if batch.preserved_latents is None else batch.preserved_latents
        preserved = schedule.add_noise(original, noise[:count], levels)
    target = schedule.target(latents, noise, timesteps)
    return Noised(schedule.add_noise(latents, perturbed, timesteps), target, timesteps, preserved, levels)


@torch.no_grad()
def predict_base(family: Family, adapter: Adapter, batches: Sequence[tuple[Batch, Noised]]) -> list[Tensor]:
    """Return what the base predicts for the latents to preserve of each batch, in one pass for those of one size."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number, (_batch, noised) in enumerate(batches):
        assert noised.preserved is not None
        by_size.setdefault(tuple(noised.preserved.shape[1:]), []).append(number)
    predictions: dict[int, Tensor] = {}
    for numbers in by_size.values():
        chosen = [batches[number] for number in numbers]
        counts = [len(batch.preserved) for batch, _noised in chosen]
        latents = torch.cat([noised.preserved for _batch, noised in chosen if noised.preserved is not None])
        timesteps = torch.cat([noised.preserved_timesteps for _batch, noised in chosen])
        conditioning = joined([batch.preserved_conditioning or {} for batch, _noised in chosen])
        with adapter.off():
            prediction = family.predict(latents, timesteps, conditioning).float()
        predictions |= zip(numbers, torch.split(prediction, counts), strict=True)
    return [predictions[number] for number in range(len(batches))]


def joined(conditionings: Sequence[Conditioning]) -> Conditioning:
    """Return the rows of all conditionings, one after the other, with texts filled up to the longest."""
    rows = {key: [row for conditioning in conditionings for row in conditioning[key]] for key in conditionings[0]}
    return stacked(rows)


def conditioned(family: Family, batch: Batch, chunks: int) -> Conditioning:
    """Return the conditioning of a batch's captions, followed by that of its prompts to preserve.

    Without cached text embeddings all prompts are encoded in one pass, each different prompt once.
    """
    captions = batch.captions * batch.is_trained
    if batch.conditioning:
        cached = [batch.conditioning] * batch.is_trained + [batch.preserved_conditioning or {}]
        return joined([conditioning for conditioning in cached if conditioning])
    prompts = (*captions, *batch.preserved)
    distinct = tuple(dict.fromkeys(prompts))
    encoded = family.encode_prompts(distinct, chunks)
    if len(distinct) < len(prompts):
        rows = [distinct.index(prompt) for prompt in prompts]
        encoded = {name: values[rows] for name, values in encoded.items()}
    if batch.sizes is None:
        return encoded
    return {**encoded, "sizes": torch.cat([batch.sizes[: len(captions)], batch.sizes[: len(batch.preserved)]])}


def draw_timesteps(
    count: int, schedule: NoiseSchedule, objective: ObjectiveConfig, rng: torch.Generator, shape: Sequence[int]
) -> Tensor:
    """Draw timesteps [count] between the first and the last that are trained, for latents of a shape.

    Esser et al. 2024, https://arxiv.org/abs/2403.03206 (section 3.1): logit-normal is the sigmoid of a normal number,
    mode is 1 - u - s (cos^2(pi u / 2) - 1 + u) of a uniform one. In both, 0 is the image and 1 the noise.
    """
    last_of_all = schedule.timesteps - 1
    first, last = min(objective.min_timestep, last_of_all), min(objective.max_timestep, last_of_all)
    if objective.timestep_sampling == "uniform" and schedule.prediction_type != "flow":
        return torch.randint(first, last + 1, (count,), generator=rng)
    if objective.timestep_sampling == "logit-normal":
        shares = torch.sigmoid(objective.logit_mean + objective.logit_std * torch.randn(count, generator=rng))
        return schedule.at(shares, first, last, shape)
    shares = torch.rand(count, generator=rng)
    if objective.timestep_sampling == "mode":
        bend = torch.cos(math.pi * shares / 2) ** 2 - 1 + shares
        shares = 1 - shares - objective.mode_scale * bend
    return schedule.at(shares, first, last, shape)


def error(prediction: Tensor, target: Tensor, share: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Return the error of each value; `share` [b] is the timestep over the last one.

    Pseudo-Huber is 2 c (sqrt(d^2 + c^2) - c): d^2 for small d, 2 c |d| for large. Scheduled, c falls from 1 to the
    setting as c^share: Khrapov et al. 2024, https://arxiv.org/abs/2403.16728 (section 4).
    """
    if objective.loss_type == "l2":
        return functional.mse_loss(prediction, target, reduction="none")
    power = share if objective.loss_type == "scheduled-huber" else torch.ones_like(share)
    c = (objective.huber_c**power).view(-1, 1, 1, 1)
    return 2 * c * (((prediction - target) ** 2 + c**2).sqrt() - c)


def weighted(errors: Tensor, schedule: NoiseSchedule, timesteps: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Return the mean error [b] of each image, from errors [b, c, h, w], with the weight of its noise level."""
    losses = errors.mean(dim=(1, 2, 3))
    if objective.weighting == "none":
        return losses
    return losses * weight(schedule, timesteps, objective)


def masked(errors: Tensor, mask: Tensor, outside: float) -> Tensor:
    """Weight errors [b, c, h, w] by masks [b, 1, h, w] in 0..1; the mean weight of an image stays 1."""
    weights = outside + (1 - outside) * mask
    return errors * weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)


def weight(schedule: NoiseSchedule, timesteps: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Return the weight [b] of the loss at the noise levels of timesteps [b].

    Each is known as a weight of the error in the predicted image: min(SNR, gamma), Hang et al. 2023,
    https://arxiv.org/abs/2303.09556 (section 3.4); sqrt(SNR), Yu et al. 2023, https://arxiv.org/abs/2310.08442
    (section 3.2); SNR / (1 + SNR)^gamma, Choi et al. 2022, https://arxiv.org/abs/2204.00227 (section 3.2 with k = 1).
    It is divided by the scale that the error of the prediction already has. For v, where the paper gives no weight,
    debiased is 1 / (SNR + 1), as in sd-scripts: every error in the predicted image counts the same.
    """
    snr = schedule.snr(timesteps).clamp(LEAST_SNR, MOST_SNR)
    if objective.weighting == "min-snr":
        image_weight = snr.clamp(max=objective.min_snr_gamma)
    elif objective.weighting == "debiased":
        image_weight = snr.sqrt() if schedule.prediction_type == "epsilon" else torch.ones_like(snr)
    else:
        image_weight = snr / (1 + snr) ** objective.p2_gamma
    return image_weight / schedule.error_scale(snr)
