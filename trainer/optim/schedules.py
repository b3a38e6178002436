"""Learning-rate schedules: what share of the rate is used in each step. Pure functions of it, without state."""

import math
from typing import Any, Literal

from pydantic import Field

from trainer.schema import Section


def _warmup_field() -> Any:  # noqa: ANN401 - a Field
    return Field(0.05, ge=0, le=1, title="Warm-up", description="Share of the steps in which the rate rises from 0.")


def _floor_field() -> Any:  # noqa: ANN401 - a Field
    return Field(0.05, ge=0, le=1, title="Floor", description="Share of the rate that is left at the end.")


class Constant(Section):
    """The same learning rate from the end of the warm-up on."""

    kind: Literal["constant"] = "constant"
    warmup: float = _warmup_field()

    def factor(self, step: int, steps: int) -> float:
        """Share of the learning rate to use in the step that follows `step` completed ones."""
        return _warmup(step, steps, self.warmup)


class Cosine(Section):
    """Half a cosine from the full learning rate to a floor, Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983.

    With more than one cycle the rate jumps back to the full one after each (section 3 of the paper, equal lengths).
    """

    kind: Literal["cosine"] = "cosine"
    warmup: float = _warmup_field()
    floor: float = _floor_field()
    cycles: int = Field(1, ge=1, le=100, title="Cycles", description="Half cosines, each from the full rate again.")

    def factor(self, step: int, steps: int) -> float:
        """Share of the learning rate to use in the step that follows `step` completed ones."""
        done = step / max(1, steps) * self.cycles % 1 if self.cycles > 1 else step / max(1, steps)
        wave = 0.5 * (1 + math.cos(math.pi * done))
        return _warmup(step, steps, self.warmup) * (self.floor + (1 - self.floor) * wave)


class Linear(Section):
    """A straight line from the full learning rate to a floor."""

    kind: Literal["linear"] = "linear"
    warmup: float = _warmup_field()
    floor: float = _floor_field()

    def factor(self, step: int, steps: int) -> float:
        """Share of the learning rate to use in the step that follows `step` completed ones."""
        return _warmup(step, steps, self.warmup) * (1 - (1 - self.floor) * step / max(1, steps))


class Stable(Section):
    """Warm-up, the full learning rate, and a straight cool-down, Hu et al. 2024, https://arxiv.org/abs/2404.06395.

    Section 4 of the paper. Where the cool-down begins need not be known beforehand: a run that is asked to cool down
    is shortened so that it begins at once.
    """

    kind: Literal["stable"] = "stable"
    warmup: float = _warmup_field()
    floor: float = _floor_field()
    cooldown: float = Field(
        0.2, gt=0, lt=1, title="Cool-down", description="Share of the steps at the end in which the rate falls."
    )

    def factor(self, step: int, steps: int) -> float:
        """Share of the learning rate to use in the step that follows `step` completed ones."""
        falling = max(1, self.length(steps))
        left = min(1.0, (steps - step) / falling)
        return _warmup(step, steps, self.warmup) * (self.floor + (1 - self.floor) * left)

    def length(self, steps: int) -> int:
        """Number of steps of the cool-down."""
        return round(self.cooldown * steps)

    def shortened(self, step: int, steps: int) -> int:
        """Number of steps of a run that begins to cool down after `step` completed ones; never more than `steps`."""
        return min(steps, max(step + 1, round(step / (1 - self.cooldown))))


def _warmup(step: int, steps: int, share: float) -> float:
    rising = max(1, round(share * steps))
    return min(1.0, (step + 1) / rising)
