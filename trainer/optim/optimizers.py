"""Optimizers: a table of their classes, settings and traits, from which the sections of the settings are made.

Torch-free until one is built, over parameter groups `{"params": [...], "factor": share of the learning rate}`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from importlib.metadata import version
from operator import or_
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, create_model, field_validator

from trainer.errors import UserError
from trainer.i18n import _
from trainer.optim import custom
from trainer.schema import Section

if TYPE_CHECKING:
    from torch.optim import Optimizer

Groups = list[dict[str, Any]]


# Fields of sections, by name: pydantic's `Field` is untyped.
def _rate(default: float, description: str = "Size of each step; the schedule scales it.") -> dict[str, Any]:
    return {"learning_rate": Field(default, gt=0, le=10, title="Learning rate", description=description)}


def _share(title: str, default: float, description: str) -> dict[str, Any]:
    name = title.lower().replace(" ", "")
    return {name: Field(default, ge=0, lt=1, title=title, description=description)}


def _betas(
    beta2: float, description: str = "Decay of the mean of their squares; lower suits short runs."
) -> dict[str, Any]:
    return _share("Beta 1", 0.9, "Decay of the mean of the gradients.") | _share("Beta 2", beta2, description)


_FACTOR = _rate(1.0, "Factor on the rate that it finds; leave it at 1.")
_WEIGHT_DECAY: Any = Field(
    0.0, ge=0, le=1, title="Weight decay", description="How strongly the adapter is pulled towards zero."
)


@dataclass(frozen=True)
class Row:
    """An optimizer: its class, its settings besides weight decay, and what the rest of the program has to know."""

    kind: str  # in settings
    title: str
    about: str  # the first line is shown in the list of settings
    path: str  # dotted name of its class
    settings: Mapping[str, Any]  # fields, by the names of its arguments; beta1, beta2, ... are one argument, `betas`
    extra: str = ""  # extra of Limner that installs its package
    since: str = ""  # version of the package that has it, if ours may be older
    fixed: Mapping[str, object] = field(default_factory=dict)  # arguments that are not settings
    has_fused: bool = False  # it has a fused kernel, for tensors on CPUs and on cards of NVIDIA
    finds_rate: bool = False  # one for all trained parts, so that factors on it are not supported
    averages: bool = False  # instead of following a schedule
    matrices_only: bool = False


ROWS = {
    row.kind: row
    for row in (
        Row(
            "adamw",
            "AdamW",
            "Adam with decoupled weight decay, Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101.",
            "torch.optim.AdamW",
            {**_rate(1e-4), **_betas(0.99)},
            has_fused=True,
        ),
        Row(
            "adamw8bit",
            "AdamW 8-bit",
            "AdamW with its state in 8 bits, Dettmers et al. 2022, https://arxiv.org/abs/2110.02861.",
            "bitsandbytes.optim.AdamW8bit",
            {**_rate(1e-4), **_betas(0.99)},
            extra="bitsandbytes",
        ),
        # Without the paper's relative step sizes, so that the learning rate means what it means for AdamW.
        Row(
            "adafactor",
            "Adafactor",
            "Adam with row and column means of squares, Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235 "
            "(section 7).",
            "transformers.optimization.Adafactor",
            {**_rate(1e-4)},
            fixed={"scale_parameter": False, "relative_step": False},
        ),
        Row(
            "lion",
            "Lion",
            "Steps in the sign of an average, Chen et al. 2023, https://arxiv.org/abs/2302.06675 (algorithm 2).",
            "trainer.optim.lion.Lion",
            {
                **_rate(2e-5, "Change of every weight in each step; use a third to a tenth of AdamW's rate."),
                **_betas(0.99, "Decay of the average."),
            },
        ),
        # Its estimate is kept from jumping while the schedule warms up.
        Row(
            "prodigy",
            "Prodigy",
            "Finds its own learning rate, Mishchenko & Defazio 2024, https://arxiv.org/abs/2306.06101 (algorithm 4).",
            "prodigyopt.Prodigy",
            {**_FACTOR, **_betas(0.999)},
            extra="prodigy",
            fixed={"use_bias_correction": True, "safeguard_warmup": True},
            finds_rate=True,
        ),
        # Its author advises against a limit on the gradient norm.
        Row(
            "prodigy-schedule-free",
            "Schedule-free Prodigy",
            "Prodigy that averages instead of lowering its rate: "
            "https://github.com/LoganBooker/prodigy-plus-schedule-free.",
            "prodigyplus.ProdigyPlusScheduleFree",
            {**_FACTOR, **_betas(0.99)},
            extra="prodigy",
            fixed={"split_groups": False},
            finds_rate=True,
            averages=True,
        ),
        # Previews, checkpoints and the file show the average (x in the paper); gradients are taken elsewhere (y).
        Row(
            "schedule-free",
            "Schedule-free AdamW",
            "AdamW that averages instead of lowering its rate, Defazio et al. 2024, https://arxiv.org/abs/2405.15682.",
            "schedulefree.AdamWScheduleFree",
            {**_rate(2e-4), **_betas(0.999)},
            extra="schedule-free",
            averages=True,
        ),
        Row(
            "came",
            "CAME",
            "Adafactor with momentum, less where its steps disagree, Luo et al. 2023, "
            "https://arxiv.org/abs/2307.02047.",
            "pytorch_optimizer.CAME",
            {
                **_rate(1e-4),
                **_betas(0.999),
                **_share("Beta 3", 0.9999, "Decay of the mean of how far steps are from their mean."),
            },
            extra="optimizers",
        ),
        # With decoupled weight decay, as in the paper (algorithm 1).
        Row(
            "ademamix",
            "AdEMAMix",
            "AdamW with a second, slow mean of the gradients, Pagliardini et al. 2024, "
            "https://arxiv.org/abs/2409.03137.",
            "pytorch_optimizer.AdEMAMix",
            {
                **_rate(1e-4),
                **_betas(0.999),
                **_share("Beta 3", 0.9999, "Decay of the slow mean of the gradients."),
                "alpha": Field(5.0, ge=0, le=100, title="Alpha", description="Weight of the slow mean."),
            },
            extra="optimizers",
            fixed={"weight_decouple": True},
        ),
        # Steps are as large as AdamW's, as in Liu et al. 2025, https://arxiv.org/abs/2502.16982 (section 2.2), so that
        # the learning rate means what it means for AdamW. Matrices: not DoRA's magnitudes, nor convolutions.
        Row(
            "muon",
            "Muon",
            "Momentum made orthogonal, Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.",
            "torch.optim.Muon",
            {
                **_rate(1e-4, "Steps are scaled to the size of AdamW's; start with a rate that suits AdamW."),
                **_share("Momentum", 0.95, "Decay of the mean of the gradients."),
            },
            since="2.9",
            fixed={"adjust_lr_fn": "match_rms_adamw"},
            matrices_only=True,
        ),
    )
}


class OptimizerConfig(Section):
    """Settings of an optimizer; each row of the table has its subclass in `SECTIONS`."""

    row: ClassVar[Row]
    kind: str
    learning_rate: float

    @property
    def class_path(self) -> str:
        """Dotted name of its class."""
        return self.row.path

    def class_arguments(self) -> dict[str, object]:
        """Return the arguments of its class, besides the learning rate."""
        values = self.model_dump(exclude={"kind", "learning_rate"})
        betas = tuple(values.pop(name) for name in [*values] if name.startswith("beta"))
        if betas:
            values["betas"] = betas
        return values | dict(self.row.fixed)

    def build(self, groups: Groups) -> "Optimizer":
        """Build the optimizer, in training mode if it has one.

        Raises:
            UserError: its package is not installed or too old, or it refuses its arguments.
        """
        arguments = {"lr": self.learning_rate} | self.class_arguments()
        if self.row.has_fused:
            tensors = [parameter for group in groups for parameter in group["params"]]
            arguments["fused"] = all(tensor.is_cuda or tensor.is_cpu for tensor in tensors) or None
        optimizer: Any = self._construct(groups, arguments)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return cast("Optimizer", optimizer)

    def _construct(self, groups: Groups, arguments: dict[str, object]) -> "Optimizer":
        return _load(self.row)(groups, **arguments)


class Custom(OptimizerConfig, title="Other, by its class"):
    """Any optimizer of an installed package, by the dotted name of its class."""

    row: ClassVar[Row] = Row("custom", "Other, by its class", "", "", {})
    kind: Literal["custom"] = "custom"
    learning_rate: float = _rate(1e-4)["learning_rate"]
    class_name: str = Field(
        "torch.optim.RAdam",
        max_length=200,
        title="Class",
        description="Dotted name of a subclass of torch.optim.Optimizer in an installed package.",
    )
    arguments: tuple[str, ...] = Field(
        (),
        max_length=32,
        title="Arguments",
        description="Of the class, one per line, without the learning rate: weight_decay = 0.01, betas = [0.9, 0.99].",
    )

    @field_validator("class_name")
    @classmethod
    def _is_dotted(cls, name: str) -> str:
        if not custom.NAME.fullmatch(name):
            raise ValueError(_("give the name of a class, such as torch.optim.RAdam"))
        return name

    @field_validator("arguments")
    @classmethod
    def _are_arguments(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        custom.parse(lines)
        return lines

    @property
    def class_path(self) -> str:
        """Dotted name of its class."""
        return self.class_name

    def class_arguments(self) -> dict[str, object]:
        """Return the arguments of its class, besides the learning rate."""
        return custom.parse(self.arguments)

    def _construct(self, groups: Groups, arguments: dict[str, object]) -> "Optimizer":
        return custom.construct(self.class_name, groups, arguments)


def _section(row: Row) -> type[OptimizerConfig]:
    fields: dict[str, Any] = {"kind": (Literal[row.kind], row.kind)}
    fields |= {name: (float, info) for name, info in {**row.settings, "weight_decay": _WEIGHT_DECAY}.items()}
    section: type[OptimizerConfig] = create_model(
        row.path.rpartition(".")[2],
        __base__=OptimizerConfig,
        __doc__=row.about,
        __module__=__name__,
        __cls_kwargs__={"title": row.title},
        **fields,
    )
    section.row = row
    return section


SECTIONS = {row.kind: _section(row) for row in ROWS.values()} | {"custom": Custom}
# mypy sees the base class; pydantic sees all sections, and chooses by `kind`.
if TYPE_CHECKING:
    AnyOptimizer = OptimizerConfig
else:
    AnyOptimizer = reduce(or_, SECTIONS.values())


def _load(row: Row) -> Callable[..., "Optimizer"]:
    module_name, _dot, class_name = row.path.rpartition(".")
    package = row.path.partition(".")[0]
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        if not row.extra:
            raise
        raise UserError(
            "{name} needs a package that is not installed.",
            "Install it with: pip install 'limner[{extra}]', or choose another optimizer.",
            name=row.title,
            extra=row.extra,
        ) from None
    if row.since and not hasattr(module, class_name):
        raise UserError(
            "{name} needs a newer {package} than {version}.",
            "Install {package} {since} or later, or choose another optimizer.",
            name=row.title,
            package=package,
            version=version(package),
            since=row.since,
        )
    return cast("Callable[..., Optimizer]", getattr(module, class_name))
