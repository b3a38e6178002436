"""Shared by both trainings: a learning rate that can be resumed and extended, averaged weights, progress lines."""

import random
import time
from collections.abc import Iterable

import torch
from torch import Tensor

WARMUP_STEPS = 150


def learning_rate_factor(step: int, *, seen: int, total: int, decay_share: float) -> float:
    """Return the share of the full rate: warm-up, then flat, then a straight line to zero at `total` samples.

    Flat until near the end, so that a run can be extended without having decayed for nothing
    (https://arxiv.org/abs/2405.18392, section 3).
    """
    left = max(0.0, 1 - seen / total) / decay_share
    return min(1.0, (step + 1) / WARMUP_STEPS, left)


@torch.no_grad()
def average_into(averaged: Iterable[Tensor], current: Iterable[Tensor], step: int, longest: float) -> None:
    """Move the averaged weights towards the current ones; quickly at first, when the current are best."""
    decay = min(longest, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged), list(current), 1 - decay)


def seed_step(seed: int, step: int) -> random.Random:
    """Seed torch for this step and return a generator for plain choices: a resumed run draws what it would have."""
    torch.manual_seed(seed * 1_000_003 + step)
    return random.Random(seed * 1_000_003 + step)


class Clock:
    """Collects losses for progress lines, and tells when it is time for a checkpoint or the end."""

    def __init__(self, *, checkpoint_every: float, minutes: float | None) -> None:
        now = time.monotonic()
        self._checkpoint_every = checkpoint_every
        self._last_checkpoint = now
        self._last_line = now
        self._end = None if minutes is None else now + minutes * 60
        self._losses: list[float] = []
        self._samples = 0

    def add(self, loss: float, samples: int) -> None:
        """Count one step."""
        self._losses.append(loss)
        self._samples += samples

    def line(self) -> str:
        """Describe the steps since the last line."""
        now = time.monotonic()
        loss = sum(self._losses) / max(1, len(self._losses))
        speed = self._samples / max(1e-9, now - self._last_line)
        self._losses, self._samples, self._last_line = [], 0, now
        return f"loss {loss:.4f}, {speed:.1f} samples/s"

    def checkpoint_due(self) -> bool:
        """Return True if it is time to save, and restart the timer if so."""
        now = time.monotonic()
        if now - self._last_checkpoint < self._checkpoint_every:
            return False
        self._last_checkpoint = now
        return True

    def over(self) -> bool:
        """Return True if the time is up."""
        return self._end is not None and time.monotonic() >= self._end
