"""Optimizers: their settings, and `build()`, which returns the optimizer. Torch-free until then.

Each is built over parameter groups `{"params": [...], "factor": share of the learning rate}`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from trainer.errors import UserError
from trainer.schema import Section

if TYPE_CHECKING:
    from torch.optim import Optimizer

Groups = list[dict[str, Any]]
# The kinds that find one rate for all trained parts, and those that average instead of following a schedule.
PRODIGIES = ("prodigy", "prodigy-schedule-free")
SCHEDULE_FREE = ("schedule-free", "prodigy-schedule-free")


LearningRate = Annotated[
    float,
    Field(gt=0, le=10, title="Learning rate", description="Size of each step; the schedule scales it."),
]
Beta1 = Annotated[
    float,
    Field(ge=0, lt=1, title="Beta 1", description="Decay of the mean of the gradients."),
]
Beta2 = Annotated[
    float,
    Field(ge=0, lt=1, title="Beta 2", description="Decay of the mean of their squares; lower suits short runs."),
]
WeightDecay = Annotated[
    float,
    Field(ge=0, le=1, title="Weight decay", description="How strongly the adapter is pulled towards zero."),
]


class AdamW(Section, title="AdamW"):
    """Adam with decoupled weight decay, Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: LearningRate = 1e-4
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.99
    weight_decay: WeightDecay = 0.0

    def build(self, groups: Groups) -> Optimizer:
        """Build AdamW, fused where all tensors are on devices for which torch has a fused kernel."""
        import torch

        fused = all(parameter.is_cuda or parameter.is_cpu for group in groups for parameter in group["params"])
        return torch.optim.AdamW(
            groups,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            fused=fused or None,
        )


class AdamW8bit(Section, title="AdamW 8-bit"):
    """AdamW with its state in 8 bits, Dettmers et al. 2022, https://arxiv.org/abs/2110.02861."""

    kind: Literal["adamw8bit"] = "adamw8bit"
    learning_rate: LearningRate = 1e-4
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.99
    weight_decay: WeightDecay = 0.0

    def build(self, groups: Groups) -> Optimizer:
        """Build the optimizer of bitsandbytes.

        Raises:
            UserError: bitsandbytes is not installed.
        """
        optimizer_class = _installed("bitsandbytes.optim.AdamW8bit", "bitsandbytes", "AdamW 8-bit")
        return optimizer_class(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )


class Adafactor(Section):
    """Adam with row and column means of squares, Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235 (section 7).

    Without the paper's relative step sizes, so that the learning rate means what it means for AdamW.
    """

    kind: Literal["adafactor"] = "adafactor"
    learning_rate: LearningRate = 1e-4
    weight_decay: WeightDecay = 0.0

    def build(self, groups: Groups) -> Optimizer:
        """Build the optimizer of transformers."""
        from transformers.optimization import Adafactor

        optimizer: Optimizer = Adafactor(
            groups, lr=self.learning_rate, weight_decay=self.weight_decay, scale_parameter=False, relative_step=False
        )
        return optimizer


class Lion(Section):
    """Steps in the sign of an average, Chen et al. 2023, https://arxiv.org/abs/2302.06675 (algorithm 2)."""

    kind: Literal["lion"] = "lion"
    learning_rate: LearningRate = Field(
        2e-5, description="Change of every weight in each step; use a third to a tenth of AdamW's rate."
    )
    beta1: Beta1 = 0.9
    beta2: Beta2 = Field(0.99, description="Decay of the average.")
    weight_decay: WeightDecay = 0.0

    def build(self, groups: Groups) -> Optimizer:
        """Build our own implementation."""
        from trainer.optim.lion import Lion

        return Lion(groups, self.learning_rate, (self.beta1, self.beta2), self.weight_decay)


class Prodigy(Section):
    """Finds its own learning rate, Mishchenko & Defazio 2024, https://arxiv.org/abs/2306.06101 (algorithm 4).

    All trained parts share one rate, so that factors on it are not supported.
    """

    kind: Literal["prodigy"] = "prodigy"
    learning_rate: LearningRate = Field(1.0, description="Factor on the rate that it finds; leave it at 1.")
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    weight_decay: WeightDecay = 0.0

    def build(self, groups: Groups) -> Optimizer:
        """Build the optimizer of prodigyopt, with its estimate kept from jumping while the schedule warms up.

        Raises:
            UserError: prodigyopt is not installed.
        """
        optimizer_class = _installed("prodigyopt.Prodigy", "prodigy", "Prodigy")
        return optimizer_class(
            groups,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            use_bias_correction=True,
            safeguard_warmup=True,
        )


class ProdigyScheduleFree(Section, title="Schedule-free Prodigy"):
    """Prodigy that averages instead of lowering its rate: https://github.com/LoganBooker/prodigy-plus-schedule-free.

    Goes with the constant schedule, and has one rate for all trained parts. Its author advises against a limit on the
    gradient norm.
    """

    kind: Literal["prodigy-schedule-free"] = "prodigy-schedule-free"
    learning_rate: LearningRate = Field(1.0, description="Factor on the rate that it finds; leave it at 1.")
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.99
    weight_decay: WeightDecay = 0.0

    def build(self, groups: Groups) -> Optimizer:
        """Build the optimizer of prodigyplus, which begins in training mode.

        Raises:
            UserError: prodigyplus is not installed.
        """
        optimizer_class = _installed("prodigyplus.ProdigyPlusScheduleFree", "prodigy", "Schedule-free Prodigy")
        return optimizer_class(
            groups,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            split_groups=False,
        )


class ScheduleFree(Section, title="Schedule-free AdamW"):
    """AdamW that averages instead of lowering its rate, Defazio et al. 2024, https://arxiv.org/abs/2405.15682.

    Goes with the constant schedule. Previews, checkpoints and the file show the average (x in the paper), while the
    gradients are taken elsewhere (y).
    """

    kind: Literal["schedule-free"] = "schedule-free"
    learning_rate: LearningRate = 2e-4
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    weight_decay: WeightDecay = 0.0

    def build(self, groups: Groups) -> Optimizer:
        """Build the optimizer of schedulefree, in training mode.

        Raises:
            UserError: schedulefree is not installed.
        """
        optimizer_class = _installed("schedulefree.AdamWScheduleFree", "schedule-free", "Schedule-free AdamW")
        optimizer: Any = optimizer_class(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        optimizer.train()
        return cast("Optimizer", optimizer)


class Came(Section, title="CAME"):
    """Adafactor with momentum, less where its steps disagree, Luo et al. 2023, https://arxiv.org/abs/2307.02047."""

    kind: Literal["came"] = "came"
    learning_rate: LearningRate = 1e-4
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    beta3: float = Field(
        0.9999, ge=0, lt=1, title="Beta 3", description="Decay of the mean of how far steps are from their mean."
    )
    weight_decay: WeightDecay = 0.0

    def build(self, groups: Groups) -> Optimizer:
        """Build the optimizer of pytorch_optimizer.

        Raises:
            UserError: pytorch_optimizer is not installed.
        """
        optimizer_class = _installed("pytorch_optimizer.CAME", "optimizers", "CAME")
        return optimizer_class(
            groups, lr=self.learning_rate, betas=(self.beta1, self.beta2, self.beta3), weight_decay=self.weight_decay
        )


class AdEMAMix(Section, title="AdEMAMix"):
    """AdamW with a second, slow mean of the gradients, Pagliardini et al. 2024, https://arxiv.org/abs/2409.03137."""

    kind: Literal["ademamix"] = "ademamix"
    learning_rate: LearningRate = 1e-4
    beta1: Beta1 = 0.9
    beta2: Beta2 = 0.999
    beta3: float = Field(0.9999, ge=0, lt=1, title="Beta 3", description="Decay of the slow mean of the gradients.")
    alpha: float = Field(5.0, ge=0, le=100, title="Alpha", description="Weight of the slow mean.")
    weight_decay: WeightDecay = 0.0

    def build(self, groups: Groups) -> Optimizer:
        """Build the optimizer of pytorch_optimizer, with decoupled weight decay as in the paper (algorithm 1).

        Raises:
            UserError: pytorch_optimizer is not installed.
        """
        optimizer_class = _installed("pytorch_optimizer.AdEMAMix", "optimizers", "AdEMAMix")
        return optimizer_class(
            groups,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2, self.beta3),
            alpha=self.alpha,
            weight_decay=self.weight_decay,
            weight_decouple=True,
        )


class Muon(Section):
    """Momentum made orthogonal, Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.

    Steps are as large as AdamW's, as in Liu et al. 2025, https://arxiv.org/abs/2502.16982 (section 2.2), so that the
    learning rate means what it means for AdamW. It is defined for matrices: not for DoRA's magnitudes, nor for
    convolutions.
    """

    kind: Literal["muon"] = "muon"
    learning_rate: LearningRate = Field(
        1e-4, description="Steps are scaled to the size of AdamW's; start with a rate that suits AdamW."
    )
    momentum: float = Field(0.95, ge=0, lt=1, title="Momentum", description="Decay of the mean of the gradients.")
    weight_decay: WeightDecay = 0.0

    def build(self, groups: Groups) -> Optimizer:
        """Build the optimizer of torch.

        Raises:
            UserError: torch is too old to have it.
        """
        import torch

        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                "Muon needs a newer torch than {version}.",
                "Install torch 2.9 or later, or choose another optimizer.",
                version=torch.__version__,
            )
        return torch.optim.Muon(
            groups,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )


def _installed(path: str, extra: str, name: str) -> Callable[..., Optimizer]:
    """Return a class of an optional package, by its dotted name."""
    module, _, class_name = path.rpartition(".")
    try:
        return cast("Callable[..., Optimizer]", getattr(importlib.import_module(module), class_name))
    except ImportError:
        raise UserError(
            "{name} needs a package that is not installed.",
            "Install it with: pip install 'limner[{extra}]', or choose another optimizer.",
            name=name,
            extra=extra,
        ) from None
