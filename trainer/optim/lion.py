"""Lion, "evolved sign momentum": Chen et al. 2023, https://arxiv.org/abs/2302.06675 (algorithm 2)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """Moves each weight by the learning rate, up or down; keeps only one average per weight."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Do one step; returns the loss if a closure computes it."""
        loss = closure() if closure else None
        for group in self.param_groups:
            (beta1, beta2), rate = group["betas"], group["lr"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                average: Tensor = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                direction = torch.lerp(parameter.grad, average, beta1).sign_()
                parameter.mul_(1 - rate * group["weight_decay"]).sub_(direction, alpha=rate)
                average.lerp_(parameter.grad, 1 - beta2)
        return loss
