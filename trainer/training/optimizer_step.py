"""One optimizer step: the gradient is computed, added up, measured and clipped, watched, and followed."""

import math
import statistics
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from trainer.config import TrainConfig, adjustments
from trainer.errors import UserError
from trainer.families import Adapter, Family
from trainer.rng import generator, seed_dropout
from trainer.training.batches import Batch, Batches
from trainer.training.checkpoint import Progress
from trainer.training.loss import training_loss

EARLY = 0.15  # share of the steps in which the instability guard watches
FEWEST = 5  # gradients that a median is taken of


def gradients(
    accelerator: Accelerator, family: Family, adapter: Adapter, batches: Batches, config: TrainConfig, step: int
) -> Tensor:
    """Compute the gradients of a step, of which each process has its share; returns its share of the loss."""
    loss = torch.zeros((), device=accelerator.device)
    for micro in range(config.training.accumulation):
        loss += backward(accelerator, family, adapter, batches.at(step, micro), config, (step, micro))
    return loss


def backward(
    accelerator: Accelerator,
    family: Family,
    adapter: Adapter,
    batch: Batch,
    config: TrainConfig,
    place: tuple[int, int],
) -> Tensor:
    """Add the gradient of a batch at its place (step, micro-step), part by part; returns this process's loss.

    All randomness follows from the place, and noise from that of the whole batch.
    """
    loss = torch.zeros((), device=accelerator.device)
    processes, parts = accelerator.num_processes, config.training.parts
    for number in range(accelerator.process_index, parts * processes, processes):
        seed_dropout(config.seed, *place, "dropout", *([number] if number else []))
        with accelerator.autocast():
            rng = generator(config.seed, *place, "noise")
            share = training_loss(family, adapter, batch.part(number, parts * processes), config, rng)
        accelerator.backward(share / config.training.accumulation)
        loss += share.detach() / config.training.accumulation
    return loss


def scaled(scaler: Any, progress: Progress) -> GradScaler | None:  # noqa: ANN401 - accelerate is untyped
    """The scaler of fp16 training as a checkpoint left it; None in other precisions, which need none."""
    if scaler is not None and "scaler" in progress.notes:
        scaler.load_state_dict(progress.notes["scaler"])
    checked: GradScaler | None = scaler
    return checked


def clip(progress: Progress, limit: float, scaler: GradScaler | None) -> float:
    """Make the gradient no longer than `limit` (0 = any length); returns how long it was."""
    if scaler:
        scaler.unscale_(progress.optimizer)
    return torch.nn.utils.clip_grad_norm_(progress.parameters(), limit or float("inf")).item()


def exploded(norm: float, step: int, config: TrainConfig, progress: Progress) -> bool:
    """Tell whether the gradient norm of an early step is far above the median of those before it.

    Those of a run's early steps are noted, so that they are the same after it was resumed. With a scaler a step that
    is not finite is passed over instead, which is how fp16 finds its scale.
    """
    if not config.training.guard or step >= EARLY * config.training.steps:
        return False
    norms: list[float] = progress.notes.setdefault("norms", [])
    known = len(norms) >= FEWEST
    far = known and not norm <= config.training.guard * statistics.median(norms)  # also if it is no number
    if math.isfinite(norm):
        norms.append(norm)
    return far and (math.isfinite(norm) or "scaler" not in progress.notes)


def check(loss: float, norm: float, step: int, config: TrainConfig, scaler: GradScaler | None) -> None:
    """Stop before a step that would destroy the adapter; with a scaler, the scaler passes over a gradient too large.

    Raises:
        UserError: the loss or the gradient is not finite.
    """
    if not math.isfinite(loss) or not (math.isfinite(norm) or scaler):
        raise UserError(
            "The training became unstable after step {step}: loss {loss}, gradient {norm}.",
            "Lower the learning rate, or train in bf16 or fp32; the last checkpoint is kept.",
            adjustments.calmer(config),
            step=step,
            loss=loss,
            norm=norm,
        )


def advance(progress: Progress, rate: float, scaler: GradScaler | None) -> None:
    """Step by the gradient at a learning rate, each group with its factor, and forget the gradient."""
    for group in progress.optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    if scaler:
        scaler.step(progress.optimizer)
        scaler.update()
        progress.notes["scaler"] = scaler.state_dict()
    else:
        progress.optimizer.step()
    progress.optimizer.zero_grad()
