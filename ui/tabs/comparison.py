"""Views of the Try out tab: which adapter files are compared side by side, at which strengths, in which order."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import UserError
from trainer.i18n import _
from ui.state import adapter_choices
from ui.state.run_watcher import RunWatcher

VIEWS = [
    (_("Single"), "one"),
    (_("Side by side"), "before"),
    (_("Slider"), "slide"),
    (_("Strengths"), "strengths"),
    (_("Checkpoints"), "checkpoints"),
    (_("Grid"), "grid"),
]
ROWS = [(_("Checkpoints"), "checkpoints"), (_("Seeds"), "seeds"), (_("Prompts"), "prompts")]
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
GRID_STRENGTHS = "0.4 0.6 0.8 1 1.2"
MOST = 5  # checkpoints, unless their steps are given
MOST_CELLS = 100
MAX_STRENGTH = 2.0


@dataclass(frozen=True)
class Axes:
    """Axes of the table: what its rows are, which of them, separated by spaces or lines, and the strengths."""

    rows: str = "checkpoints"
    chosen: str = ""
    strengths: str = GRID_STRENGTHS


@dataclass(frozen=True)
class Cell:
    """One image of a view: the key of an adapter ("" for none), its strength, and the caption below the image.

    `row` and `column` are the labels of the axes of a table; `prompt` and `seed` go before those of the form.
    """

    key: str
    strength: float
    caption: str
    row: str = ""
    column: str = ""
    prompt: str = ""
    seed: int | None = None


def cells(view: str, key: str, strength: float, watch: RunWatcher, axes: Axes = Axes()) -> list[Cell]:
    """Return the images of a view, row by row.

    Raises:
        UserError: an axis of the table has values that it cannot have, or there are too many cells.
    """
    match view:
        case "before" | "slide":
            return [_cell(key, 0.0), _cell(key, strength)]
        case "strengths":
            return [_cell(key, each_strength) for each_strength in STRENGTHS]
        case "checkpoints":
            return [Cell(checkpoint, strength, name) for checkpoint, name in checkpoints(key, watch)]
        case "grid":
            return list(_table(key, watch, axes))
        case _:
            return [_cell(key, strength)]


def columns(view: str, cells: Sequence[Cell]) -> int:
    """Return the number of images side by side."""
    return len({cell.column for cell in cells}) if view == "grid" else len(cells)


def _cell(key: str, strength: float) -> Cell:
    caption = _("without the adapter")
    if key and strength:
        caption = _("strength {strength:g}", strength=strength)
    return Cell(key, strength, caption)


def _table(key: str, watch: RunWatcher, axes: Axes) -> list[Cell]:
    strengths = _numbers(axes.strengths or GRID_STRENGTHS, MAX_STRENGTH, _("strengths"))
    rows: list[Cell] = []
    match axes.rows:
        case "seeds":
            seeds = _whole_numbers(axes.chosen or "1 2 3", 2**31 - 1, _("seeds"))
            rows = [Cell(key, 0.0, "", _("seed {seed}", seed=seed), seed=seed) for seed in seeds]
        case "prompts":
            prompts = [line.strip() for line in axes.chosen.splitlines() if line.strip()]
            if not prompts:
                raise UserError("There are no prompts for the rows of the table yet.", "Type some, one per line.")
            rows = [Cell(key, 0.0, "", prompt, prompt=prompt) for prompt in prompts]
        case _:
            steps = _whole_numbers(axes.chosen, 10**9, _("steps"))
            rows = [Cell(checkpoint, 0.0, "", name) for checkpoint, name in checkpoints(key, watch, steps)]
    if len(rows) * len(strengths) > MOST_CELLS:
        raise UserError("The table has more than {most} images.", "Choose fewer rows or strengths.", most=MOST_CELLS)
    return [
        Cell(row.key, strength, f"{row.row}, {strength:g}", row.row, f"{strength:g}", row.prompt, row.seed)
        for row in rows
        for strength in strengths
    ]


def _numbers(text: str, most: float, what: str) -> list[float]:
    """Read numbers separated by spaces, commas or lines.

    Raises:
        UserError: something else is among them, or one is out of bounds.
    """
    try:
        numbers = [float(part) for part in text.replace(",", " ").replace(";", " ").split()]
    except ValueError:
        numbers = [-1.0]
    if not all(0 <= number <= most for number in numbers):
        raise UserError(
            "The {what} of the table are not numbers from 0 to {most:g}.", "Write them as 1 2 3.", what=what, most=most
        )
    return list(dict.fromkeys(numbers))


def _whole_numbers(text: str, most: int, what: str) -> list[int]:
    """Read whole numbers, as `_numbers`."""
    numbers = _numbers(text, most, what)
    if not all(number.is_integer() for number in numbers):
        raise UserError("The {what} of the table are not whole numbers.", "Write them as 1 2 3.", what=what)
    return [int(number) for number in numbers]


def checkpoints(key: str, watch: RunWatcher, steps: Sequence[int] = ()) -> list[tuple[str, str]]:
    """Return (key, name) of checkpoints of an adapter's run, the finished file last.

    Those of some steps, or at most five, evenly spaced. An adapter from elsewhere stands alone.

    Raises:
        UserError: there is no checkpoint of a step.
    """
    run = adapter_choices.run_of(key)
    if run is None:
        return [(key, _("this file") if key else _("without the adapter"))]
    state = watch.view(run).state
    end = f"{run.id}@{state.exported}" if state.export else ""  # the same weights as the finished file
    saved = []
    for _unused, choice in reversed(adapter_choices.choices(watch)):
        run_id, _unused, step = choice.partition("@")
        if run_id == run.id and choice != end:
            saved.append((choice, _("step {step}", step=step) if step else _("finished")))
    if steps:
        known = {int(choice.partition("@")[2] or state.exported): (choice, name) for choice, name in saved}
        if missing := [step for step in steps if step not in known]:
            raise UserError(
                "There is no checkpoint of step {step}.",
                "There are those of {steps}.",
                step=missing[0],
                steps=", ".join(map(str, sorted(known))),
            )
        return [known[step] for step in steps]
    if len(saved) <= MOST:
        return saved
    return [saved[round(place * (len(saved) - 1) / (MOST - 1))] for place in range(MOST)]
