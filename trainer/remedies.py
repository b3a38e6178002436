"""Settings, by their path, with which a run that failed would do better; the page offers to train again with them."""

from trainer.config import MICRO, TrainConfig

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
