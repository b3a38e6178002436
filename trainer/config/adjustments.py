"""Settings that follow from others: steps and rank from the number of images, and changes that would help a failed run.

The latter are changes by the path of the setting; the page offers to train again with them.
"""

import math

from trainer.base_models import MICRO
from trainer.config import TrainConfig
from trainer.config.adapter import LoHa, LoKr, Lora
from trainer.config.training import TrainingConfig

Change = dict[str, float | str]
SMALLEST = 256  # pixels; below that Stable Diffusion draws little that can be recognised


def calmer(config: TrainConfig) -> Change:
    """For a run that became unstable: a quarter of the learning rate, in two digits."""
    return {"optimizer.learning_rate": float(f"{config.optimizer.learning_rate / 4:.2g}")}


def smaller(config: TrainConfig) -> Change:
    """For a run that did not fit into memory: three quarters of the resolution, in steps of 64 pixels.

    Empty if it cannot be lower. The batch is no help: a batch that does not fit is computed in parts already.
    """
    side = config.training.resolution
    lower = max(SMALLEST, side * 3 // 4 // 64 * 64)
    return {"training.resolution": lower} if config.model.base != MICRO and lower < side else {}


def planned_rank(adapter: Lora | LoHa | LoKr, count: int) -> int:
    """Rank of an adapter for a data set of `count` pictures: a large one learns a few pictures by heart.

    T-LoRA, Soboleva et al. 2025, https://arxiv.org/abs/2507.05964: with one picture rank 8 is as like as 64,
    and follows the prompt better.
    """
    return adapter.rank or (8 if count <= 4 else 16 if count <= 30 else 32)


def planned_steps(training: TrainingConfig, count: int) -> int:
    """Number of steps for a data set of `count` pictures.

    The exposures grow with the square root of the number of pictures, so that each picture of a large set is seen
    less often, but the set as a whole more often.
    """
    if training.steps:
        return training.steps
    return max(
        1, math.ceil(training.exposures * math.sqrt(max(1, count)) / (training.batch_size * training.accumulation))
    )
