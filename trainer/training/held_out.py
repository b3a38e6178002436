"""Held-out images: never trained, but measured, to see from which step on a run learns its images by heart."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from trainer.config import TrainConfig, adjustments
from trainer.data.dataset import Example
from trainer.families import Adapter, Family
from trainer.rng import generator
from trainer.runs import events
from trainer.training import distributed
from trainer.training.batches import Batches
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
