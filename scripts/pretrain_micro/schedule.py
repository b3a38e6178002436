"""Shared by both trainings: a learning rate that can be resumed and extended, averaged weights, progress lines."""

import copy
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .checkpoint import load_checkpoint, save_checkpoint

WARMUP_STEPS = 150
Model = TypeVar("Model", bound=nn.Module)


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


class Training(Generic[Model]):
    """Model, averaged weights, optimizer and progress of a training, as a state that can be saved and resumed."""

    def __init__(
        self, model: Model, checkpoint: Path, *, rate: float, beta2: float, decay: float, average: float
    ) -> None:
        """Begin a training, or go on where its checkpoint was written.

        Args:
            model: the model; what requires a gradient is trained.
            checkpoint: path of the state.
            rate: full learning rate.
            beta2: of AdamW.
            decay: weight decay of AdamW.
            average: of the averaged weights, the longest that they last.
        """
        self.model, self.checkpoint, self.rate, self.average = model, checkpoint, rate, average
        self.averaged = copy.deepcopy(model).requires_grad_(False).eval()
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, beta2), weight_decay=decay, fused=True)
        self.step = self.seen = 0
        if checkpoint.exists():
            state = load_checkpoint(checkpoint)
            self.model.load_state_dict(state["model"])
            self.averaged.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seen = state["step"], state["seen"]

    def save(self) -> None:
        """Write the state to the checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seen": self.seen,
        }
        save_checkpoint(state, self.checkpoint)

    def advance(self, loss: Tensor, samples: int, *, total: int, decay_share: float) -> float:
        """Follow the gradient of a loss over so many samples, of a training of `total`; return the loss."""
        factor = learning_rate_factor(self.step, seen=self.seen, total=total, decay_share=decay_share)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        average_into(self.averaged.parameters(), self.model.parameters(), self.step, self.average)
        self.step += 1
        self.seen += samples
        return float(loss.detach())


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
