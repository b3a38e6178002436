"""Held-out images: never trained, but measured, to see from which step on a run learns its images by heart."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator

from trainer.config import TrainConfig, adjustments
from trainer.data.dataset import Example
from trainer.families import Adapter, Family
from trainer.i18n import _
from trainer.rng import generator
from trainer.runs import Run, events
from trainer.training import distributed
from trainer.training.checkpoint import HELD_OUT, TrainState, lowest_step, restore
from trainer.training.inputs.batches import Batches
from trainer.training.loss import training_loss

DRAWS = 8  # of noise and timestep for each image, the same at every step


def split(examples: Sequence[Example], config: TrainConfig) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return the examples to train and those to hold out, each of these once; which ones follows from the seed.

    If the settings ask for any, at least one is held out, and at least one is left.
    """
    distinct = list(dict.fromkeys(example.path for example in examples))
    count = adjustments.held_out_count(config, len(distinct))
    order = torch.randperm(len(distinct), generator=generator(config.seed, "held-out"))
    chosen = {distinct[int(index)] for index in order[:count]} if count > 0 else set()
    held = {example.path: example for example in examples if example.path in chosen}
    return tuple(example for example in examples if example.path not in chosen), tuple(held.values())


def note(state: TrainState, config: TrainConfig, measured: events.HeldOut) -> events.HeldOut:
    """Note a measurement, if they decide when the run ends, so that checkpoints hold it; return it."""
    if config.held_out.patience:
        state.extra.setdefault(HELD_OUT, []).append([measured.step, measured.loss])
    return measured


def is_lowest(state: TrainState, config: TrainConfig, step: int) -> bool:
    """Return True if the loss was lowest at this step, whose checkpoint is then worth keeping."""
    return bool(config.held_out.patience) and step in state.held_out and state.lowest_held_out == step


def is_over(losses: Mapping[int, float], patience: int) -> bool:
    """Return True if a run ends after these losses by step: so many without a new lowest one; 0 = never."""
    lowest = lowest_step(losses)
    return 0 < patience <= sum(step > lowest for step in losses)


def restore_lowest(run: Run, state: TrainState, config: TrainConfig, step: int) -> int:
    """Restore the checkpoint of the lowest loss if a run ends before its last step; return the step that state is of.

    It also reports why the run ends. A run that has had all its steps stays as it is.
    """
    if step >= config.training.steps:
        return step
    lowest, loss = state.lowest_held_out, state.held_out.get(state.lowest_held_out, 0.0)
    message = _(
        "The run ended at step {step}: the loss of the held-out images was never lower than before the first step.",
        step=step,
    )
    if lowest:
        message = _(
            "The run ended at step {step}: the loss of the held-out images was lowest at step {lowest} ({loss:.4f}), "
            "whose checkpoint is damaged. The file has the adapter of step {step}.",
            step=step,
            lowest=lowest,
            loss=loss,
        )
    if lowest and restore(run, state, lowest):
        message = _(
            "The run ended at step {step}: the loss of the held-out images was lowest at step {lowest} ({loss:.4f}), "
            "whose adapter is in the file. Compare the two in Try out.",
            step=step,
            lowest=lowest,
            loss=loss,
        )
        step = lowest
    run.warn(message)
    return step


@torch.no_grad()
def measure(
    accelerator: Accelerator, family: Family, adapter: Adapter, batches: Batches, config: TrainConfig, step: int
) -> events.HeldOut:
    """Return the mean loss of the held-out images, each with the same noise and timesteps at every step.

    Several processes measure some of the images each.
    """
    images = range(batches.held_count)
    total = torch.zeros((), device=family.device)
    adapter.train(False)
    try:
        for index in images[accelerator.process_index :: accelerator.num_processes]:
            batch = batches.held_batch(index)
            for draw in range(DRAWS):
                rng = generator(config.seed, "held-out", index, draw)
                with accelerator.autocast():
                    total += training_loss(family, adapter, batch, config, rng)
    finally:
        adapter.train(True)
    return events.HeldOut(step=step, loss=distributed.add(accelerator, total.item()) / (DRAWS * len(images)))
