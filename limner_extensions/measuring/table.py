"""The table of figures that a measuring job ends with, and what is said about each checkpoint in it. Torch-free.

No checkpoint is recommended: the table says in which measure one is clearly better or worse than the last, and where
the difference may as well be chance.
"""

from dataclasses import dataclass, field
from typing import Literal

from trainer.i18n import _

Measure = Literal["likeness", "adherence", "copying", "leak", "drift"]
FEWEST_PROMPTS = 6  # for a comparison: of four, all point in the same direction by chance in one of eight cases
VISIBLE = 0.05  # a smaller difference is none, however sure: the same noise makes also the least of them certain
MEASURES: dict[Measure, bool] = {"likeness": True, "adherence": True, "copying": False, "leak": False, "drift": False}
"""Each measure, and whether more of it is better."""
TITLES: dict[Measure, str] = {
    "likeness": _("Likeness"),
    "adherence": _("Adherence"),
    "copying": _("Copying"),
    "leak": _("Leak"),
    "drift": _("Drift"),
}
Reason = Literal["own features", "no trigger", "few images", "alike", "one prompt", "same prompts", "same seeds"]
REASONS: dict[Reason, str] = {
    "own features": _("The base model's own features take blurred images for like ones: name another feature model."),
    "no trigger": _("The run has no trigger word, so that there is nothing to leave out of a prompt."),
    "few images": _("There are fewer than three training images."),
    "alike": _("In these features the training images are as close to those of the base model as to each other."),
    "one prompt": _("There is only one prompt."),
    "same prompts": _("In these features images of different prompts look alike, those of the base model too."),
    "same seeds": _("In these features the images of the base model for one prompt all look alike."),
}


@dataclass(frozen=True)
class Figure:
    """A mean over the images, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """True of a difference that can be seen, and whose interval is on one side of 0."""
        return abs(self.value) >= VISIBLE and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Row:
    """Figures of one checkpoint at a strength; step 0 is the bare base model.

    `differences` are those from the last checkpoint at the same strength, image by image; none of that one, nor of the
    base model, nor with few prompts.
    """

    step: int
    strength: float
    figures: dict[Measure, Figure]
    differences: dict[Measure, Figure] = field(default_factory=dict)

    @property
    def better(self) -> tuple[Measure, ...]:
        """The measures in which it is clearly better than the last checkpoint."""
        return self._clear(better=True)

    @property
    def worse(self) -> tuple[Measure, ...]:
        """The measures in which it is clearly worse than the last checkpoint."""
        return self._clear(better=False)

    def _clear(self, *, better: bool) -> tuple[Measure, ...]:
        clear = {name: difference.low > 0 for name, difference in self.differences.items() if difference.is_clear}
        return tuple(name for name in MEASURES if name in clear and (clear[name] == MEASURES[name]) == better)

    @property
    def label(self) -> str:
        """Label of the row."""
        if not self.step:
            return _("Base model")
        step = _("step {step}", step=self.step)
        return step if self.strength == 1 else _("{step}, strength {strength:g}", step=step, strength=self.strength)


@dataclass(frozen=True)
class Table:
    """All rows, the base model first, and how they were measured; `missing` says why a measure has no figures."""

    features: str
    prompts: int
    seeds: int
    references: int
    rows: tuple[Row, ...]
    missing: dict[Measure, Reason] = field(default_factory=dict)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures that have figures."""
        return tuple(name for name in MEASURES if name not in self.missing)

    def best(self, measure: Measure) -> Row | None:
        """Return the checkpoint whose figure is clearly better than that of each other; None if there is none."""
        rows = [row for row in self.rows if row.step]
        if len(rows) < 2:
            return None
        first, *others = sorted(rows, key=lambda row: row.figures[measure].value, reverse=MEASURES[measure])
        return first if all(self._differ(first, other, measure) for other in others) else None

    def _differ(self, one: Row, other: Row, measure: Measure) -> bool:
        """Return True if two rows are told apart: image by image where that was compared, else by their intervals."""
        if one.strength == other.strength:
            for row, last in ((one, other), (other, one)):
                if measure in row.differences and not last.differences:
                    return row.differences[measure].is_clear
        first, second = one.figures[measure], other.figures[measure]
        return first.low > second.high or second.low > first.high


def number(value: float) -> str:
    """Return a figure as text, without the sign of one that rounds to 0."""
    return f"{round(value, 2) + 0.0:.2f}"


def interval(figure: Figure) -> str:
    """Return the interval of a figure as text."""
    return _("{low} to {high}", low=number(figure.low), high=number(figure.high))


def verdict(row: Row) -> str:
    """Say how a checkpoint differs from the last one; "" for that one and the base model."""
    if not row.differences:
        return ""
    parts = []
    if row.better:
        parts.append(_("clearly better: {measures}", measures=_listed(row.better)))
    if row.worse:
        parts.append(_("clearly worse: {measures}", measures=_listed(row.worse)))
    return "; ".join(parts) or _("no clear difference from the last checkpoint")


def _listed(measures: tuple[Measure, ...]) -> str:
    return ", ".join(TITLES[name] for name in measures)


def notes(table: Table) -> list[str]:
    """Say how the figures were measured, and why some are missing."""
    lines = [
        _(
            "Images for each line: {prompts} prompts with {seeds} seeds, compared with {references} training images in "
            "the features of {features}. In parentheses: 95 % intervals.",
            prompts=table.prompts,
            seeds=table.seeds,
            references=table.references,
            features=table.features,
        )
    ]
    if table.prompts < FEWEST_PROMPTS:
        lines.append(
            _("Too few prompts to compare checkpoints: take {count} images or more.", count=2 * FEWEST_PROMPTS)
        )
    if len(table.rows) > 2 and not any(map(table.best, table.measures)):
        lines.append(
            _("In no measure is one checkpoint clearly the best: compare their images side by side in Try out.")
        )
    lines += [
        _("{measure} is missing: {reason}", measure=TITLES[name], reason=_(REASONS[reason]))
        for name, reason in table.missing.items()
    ]
    return lines
