"""Settings that follow from others: steps and rank from the number of images, and suggestions for a failed run.

Suggested settings are given by their path; the page offers to train again with them.
"""

import math
from collections.abc import Sequence

from trainer.base_models import MICRO
from trainer.config import TrainConfig
from trainer.config.adapter import LoHa, LoKr, Lora
from trainer.config.training import TrainingConfig
from trainer.data.dataset import Example
from trainer.errors import Change

LOWEST_RESOLUTION = 256  # pixels; below that Stable Diffusion draws little that can be recognized


def lower_learning_rate(config: TrainConfig) -> Change:
    """For a run that became unstable: a quarter of the learning rate, in two digits."""
    return {"optimizer.learning_rate": float(f"{config.optimizer.learning_rate / 4:.2g}")}


def lower_resolution(config: TrainConfig) -> Change:
    """For a run that did not fit into memory: three quarters of the resolution, in steps of 64 pixels.

    Further resolutions that are no longer below it are left out. Empty if it cannot be lower. A smaller batch would not
    help: one that does not fit is split already.
    """
    resolution = config.training.resolution
    lower = max(LOWEST_RESOLUTION, resolution * 3 // 4 // 64 * 64)
    if config.model.base == MICRO or lower >= resolution:
        return {}
    further = [side for side in config.training.further_resolutions if side < lower]
    if len(further) == len(config.training.further_resolutions):
        return {"training.resolution": lower}
    return {"training.resolution": lower, "training.further_resolutions": further}


def complete(config: TrainConfig, count: int) -> TrainConfig:
    """Return the settings with the rank and the steps that follow from `count` images, held-out ones not counted."""
    adapter = config.adapter.model_copy(update={"rank": planned_rank(config.adapter, count)})
    steps = planned_steps(config.training, count, len(config.taught))
    training = config.training.model_copy(update={"steps": steps})
    return config.model_copy(update={"adapter": adapter, "training": training})


def trained_count(config: TrainConfig, examples: Sequence[Example]) -> int:
    """Return how many of the examples are trained, as often as each is repeated; the others are held out.

    Exact if all images have the same number of repeats: else it depends on which of them are held out.
    """
    distinct = len({example.path for example in examples})
    return round(len(examples) * (1 - held_out_count(config, distinct) / distinct))


def planned_rank(adapter: Lora | LoHa | LoKr, count: int) -> int:
    """Return the rank of an adapter for a dataset of `count` images: a high rank memorizes a small dataset.

    T-LoRA, Soboleva et al. 2025, https://arxiv.org/abs/2507.05964: with one image, rank 8 is as similar to it as 64 and
    follows the prompt better.
    """
    if adapter.rank:
        return adapter.rank
    if count <= 4:
        return 8
    return 16 if count <= 30 else 32


def held_out_count(config: TrainConfig, count: int) -> int:
    """Return how many of a run's images are held out: at least one if any are to be, and at least one is left."""
    share = config.held_out.share
    return min(max(1, round(share * count)), count - 1) if share else 0


def planned_steps(training: TrainingConfig, count: int, subjects: int = 1) -> int:
    """Return the number of steps for `count` images, held-out ones not counted, of so many subjects.

    The exposures grow with the square root of the number of images, so that each image of a large dataset is seen
    less often, but the dataset as a whole more often. Each of several subjects is seen as often as it would be alone.
    """
    if training.steps:
        return training.steps
    exposures = training.exposures * math.sqrt(max(1, count) * subjects)
    return max(1, math.ceil(exposures / (training.batch_size * training.gradient_accumulation)))
