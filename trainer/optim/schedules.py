"""Learning-rate schedules: the share of the learning rate to use in each step. Pure functions of it, without state.

A schedule begins when its warm-up ends, as in diffusers and transformers.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from trainer.schema import Section

Warmup = Annotated[
    float,
    Field(ge=0, le=1, title="Warm-up", description="Share of the steps in which the learning rate rises from 0."),
]
Floor = Annotated[
    float,
    Field(ge=0, le=1, title="Minimum LR", description="Learning rate at the end, as a share of the full rate."),
]


class Constant(Section):
    """The same learning rate from the end of the warm-up on."""

    kind: Literal["constant"] = "constant"
    warmup: Warmup = 0.05

    def factor(self, step: int, steps: int) -> float:
        """Return the share of the learning rate to use in the step that follows `step` completed ones."""
        return _warmup(step, steps, self.warmup)


class Cosine(Section):
    """Half a cosine from the full learning rate to a minimum, Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983.

    With more than one cycle the rate jumps back to the full one after each (section 3 of the paper, equal lengths).
    """

    kind: Literal["cosine"] = "cosine"
    warmup: Warmup = 0.05
    min_lr_ratio: Floor = 0.05
    cycles: int = Field(1, ge=1, le=100, title="Cycles", description="Half cosines; each starts at the full rate.")

    def factor(self, step: int, steps: int) -> float:
        """Return the share of the learning rate to use in the step that follows `step` completed ones."""
        done = _done(step, steps, self.warmup)
        if self.cycles > 1:
            done = done * self.cycles % 1
        wave = 0.5 * (1 + math.cos(math.pi * done))
        return _warmup(step, steps, self.warmup) * (self.min_lr_ratio + (1 - self.min_lr_ratio) * wave)


class Linear(Section):
    """A straight line from the full learning rate to a minimum."""

    kind: Literal["linear"] = "linear"
    warmup: Warmup = 0.05
    min_lr_ratio: Floor = 0.05

    def factor(self, step: int, steps: int) -> float:
        """Return the share of the learning rate to use in the step that follows `step` completed ones."""
        done = _done(step, steps, self.warmup)
        return _warmup(step, steps, self.warmup) * (1 - (1 - self.min_lr_ratio) * done)


class Stable(Section):
    """Warm-up, stable, decay (WSD), Hu et al. 2024, https://arxiv.org/abs/2404.06395 (section 4).

    The full learning rate, then a straight cool-down. Its start need not be known beforehand: a run that is asked to
    cool down is shortened so that it starts at once.
    """

    kind: Literal["warmup-stable-decay"] = "warmup-stable-decay"
    warmup: Warmup = 0.05
    min_lr_ratio: Floor = 0.05
    cooldown: float = Field(
        0.2, gt=0, lt=1, title="Cool-down", description="Share of the steps, at the end, in which the rate falls."
    )

    def factor(self, step: int, steps: int) -> float:
        """Return the share of the learning rate to use in the step that follows `step` completed ones."""
        left = min(1.0, (steps - step) / max(1, self.length(steps)))
        return _warmup(step, steps, self.warmup) * (self.min_lr_ratio + (1 - self.min_lr_ratio) * left)

    def length(self, steps: int) -> int:
        """Return the number of steps of the cool-down."""
        return round(self.cooldown * steps)

    def shortened(self, step: int, steps: int) -> int:
        """Return the length of a run that starts to cool down after `step` completed steps; never more than `steps`."""
        return min(steps, max(step + 1, round(step / (1 - self.cooldown))))


def _warmup(step: int, steps: int, share: float) -> float:
    """Return the share of the rate in the warm-up, 1 after it; no step is lost at a rate of 0."""
    return min(1.0, (step + 1) / max(1, round(share * steps)))


def _done(step: int, steps: int, warmup: float) -> float:
    """Return the share of the steps after the warm-up that are done; 0 during it."""
    rising = round(warmup * steps)
    return max(0.0, (step - rising) / max(1, steps - rising))
