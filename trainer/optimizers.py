"""Optimizers and learning-rate schedules: their settings and what they build. Torch-free until `build()` is called."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trainer.schema import Section

if TYPE_CHECKING:
    from torch.optim import Optimizer


class AdamW(Section):
    """Adam with decoupled weight decay, Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(
        1e-4, gt=0, le=1, title="Learning rate", description="How far each step goes; the schedule scales it."
    )
    beta1: float = Field(0.9, ge=0, lt=1, title="Beta 1", description="Memory of the gradient's mean.")
    beta2: float = Field(
        0.99, ge=0, lt=1, title="Beta 2", description="Memory of the gradient's square; short, for short runs."
    )
    weight_decay: float = Field(0.01, ge=0, le=1, title="Weight decay", description="Pull of the adapter towards zero.")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """An optimizer over parameter groups `{"params": [...], "factor": share of the learning rate}`."""
        import torch

        return torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )


class Constant(Section):
    """The same learning rate from the end of the warm-up on."""

    kind: Literal["constant"] = "constant"
    warmup: float = Field(
        0.05, ge=0, le=1, title="Warm-up", description="Share of the steps in which the rate rises from 0."
    )

    def factor(self, step: int, steps: int) -> float:
        """Share of the learning rate to use in the step that follows `step` completed ones."""
        return _warmup(step, steps, self.warmup)


class Cosine(Section):
    """Half a cosine from the full learning rate to a floor, Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983."""

    kind: Literal["cosine"] = "cosine"
    warmup: float = Field(
        0.05, ge=0, le=1, title="Warm-up", description="Share of the steps in which the rate rises from 0."
    )
    floor: float = Field(0.05, ge=0, le=1, title="Floor", description="Share of the rate that is left at the end.")

    def factor(self, step: int, steps: int) -> float:
        """Share of the learning rate to use in the step that follows `step` completed ones."""
        wave = 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
        return _warmup(step, steps, self.warmup) * (self.floor + (1 - self.floor) * wave)


def _warmup(step: int, steps: int, share: float) -> float:
    rising = max(1, round(share * steps))
    return min(1.0, (step + 1) / rising)
