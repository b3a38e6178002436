"""Optimizers: their settings and what they build. Torch-free until `build()` is called.

Each is made over parameter groups `{"params": [...], "factor": share of the learning rate}`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trainer.errors import UserError
from trainer.schema import Section

if TYPE_CHECKING:
    from torch.optim import Optimizer

Groups = list[dict[str, Any]]


def _rate(default: float, text: str = "How far each step goes; the schedule scales it.") -> Any:  # noqa: ANN401 - a Field
    return Field(default, gt=0, le=10, title="Learning rate", description=text)


def _beta1() -> Any:  # noqa: ANN401 - a Field
    return Field(0.9, ge=0, lt=1, title="Beta 1", description="Memory of the gradient's mean.")


def _beta2(default: float = 0.99) -> Any:  # noqa: ANN401 - a Field
    return Field(
        default, ge=0, lt=1, title="Beta 2", description="Memory of the gradient's square; short, for short runs."
    )


def _decay() -> Any:  # noqa: ANN401 - a Field
    return Field(0.0, ge=0, le=1, title="Weight decay", description="Pull of the adapter towards zero.")


class AdamW(Section):
    """Adam with decoupled weight decay, Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = _rate(1e-4)
    beta1: float = _beta1()
    beta2: float = _beta2()
    weight_decay: float = _decay()

    def build(self, groups: Groups) -> Optimizer:
        """One fused kernel for all tensors on a GPU; the plain form on a CPU, where it is the exact reference."""
        import torch

        fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
        return torch.optim.AdamW(
            groups,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            fused=fused or None,
        )


class AdamW8bit(Section):
    """AdamW with its memory in 8 bits, Dettmers et al. 2022, https://arxiv.org/abs/2110.02861."""

    kind: Literal["adamw8bit"] = "adamw8bit"
    learning_rate: float = _rate(1e-4)
    beta1: float = _beta1()
    beta2: float = _beta2()
    weight_decay: float = _decay()

    def build(self, groups: Groups) -> Optimizer:
        """The optimizer of bitsandbytes.

        Raises:
            UserError: bitsandbytes is not installed.
        """
        module = _extra("bitsandbytes.optim", "bitsandbytes", "AdamW 8-bit")
        built: Optimizer = module.AdamW8bit(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        return built


class Adafactor(Section):
    """Row and column means instead of each square, Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235 (section 7).

    Without the paper's relative step sizes, so that the learning rate means what it means for AdamW.
    """

    kind: Literal["adafactor"] = "adafactor"
    learning_rate: float = _rate(1e-4)
    weight_decay: float = _decay()

    def build(self, groups: Groups) -> Optimizer:
        """The optimizer of transformers."""
        from transformers.optimization import Adafactor

        built: Optimizer = Adafactor(
            groups, lr=self.learning_rate, weight_decay=self.weight_decay, scale_parameter=False, relative_step=False
        )
        return built


class Lion(Section):
    """Steps by the sign of an average, Chen et al. 2023, https://arxiv.org/abs/2302.06675 (algorithm 2)."""

    kind: Literal["lion"] = "lion"
    learning_rate: float = _rate(2e-5, "How far each step goes in every weight: a third to a tenth of AdamW's rate.")
    beta1: float = _beta1()
    beta2: float = Field(0.99, ge=0, lt=1, title="Beta 2", description="Memory of the average.")
    weight_decay: float = _decay()

    def build(self, groups: Groups) -> Optimizer:
        """Our own implementation."""
        from trainer.optim.lion import Lion

        return Lion(groups, self.learning_rate, (self.beta1, self.beta2), self.weight_decay)


class Prodigy(Section):
    """Finds its own learning rate, Mishchenko & Defazio 2024, https://arxiv.org/abs/2306.06101 (algorithm 4).

    All trained parts share one rate, so that factors on it cannot be had.
    """

    kind: Literal["prodigy"] = "prodigy"
    learning_rate: float = _rate(1.0, "A factor on the rate that it finds; leave it at 1.")
    beta1: float = _beta1()
    beta2: float = _beta2(0.999)
    weight_decay: float = _decay()

    def build(self, groups: Groups) -> Optimizer:
        """The optimizer of prodigyopt; its estimate is kept from jumping while the schedule warms up.

        Raises:
            UserError: prodigyopt is not installed.
        """
        module = _extra("prodigyopt", "prodigy", "Prodigy")
        built: Optimizer = module.Prodigy(
            groups,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
        return built


class ScheduleFree(Section):
    """AdamW that averages instead of lowering its rate, Defazio et al. 2024, https://arxiv.org/abs/2405.15682.

    Goes with the constant schedule. Previews, checkpoints and the file show the average (x in the paper), while the
    gradients are taken elsewhere (y).
    """

    kind: Literal["schedule-free"] = "schedule-free"
    learning_rate: float = _rate(2e-4)
    beta1: float = _beta1()
    beta2: float = _beta2(0.999)
    weight_decay: float = _decay()

    def build(self, groups: Groups) -> Optimizer:
        """The optimizer of schedulefree, ready to train.

        Raises:
            UserError: schedulefree is not installed.
        """
        module = _extra("schedulefree", "schedule-free", "Schedule-free AdamW")
        optimizer = module.AdamWScheduleFree(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        optimizer.train()
        built: Optimizer = optimizer
        return built


def _extra(module: str, extra: str, name: str) -> Any:  # noqa: ANN401 - an optional package
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            "{name} needs a package that is not installed.",
            "Install it with: pip install 'limner[{extra}]', or choose another optimizer.",
            name=name,
            extra=extra,
        ) from None
