"""Views of the Try out tab: which adapter files are compared side by side, at which strengths, in which order."""

from dataclasses import dataclass

from trainer.i18n import _
from ui.state import adapter_choices
from ui.state.run_watcher import RunWatcher

VIEWS = [
    (_("One image"), "one"),
    (_("Before and after"), "before"),
    (_("With a slider"), "slide"),
    (_("Strengths"), "strengths"),
    (_("Checkpoints"), "checkpoints"),
    (_("Checkpoints by strengths"), "grid"),
]
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
GRID_STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2)
MOST = 5  # checkpoints


@dataclass(frozen=True)
class Cell:
    """One image of a view: the key of an adapter ("" for none), its strength, and the caption below the image."""

    key: str
    strength: float
    caption: str


def cells(view: str, key: str, strength: float, watch: RunWatcher) -> list[Cell]:
    """Return the images of a view, row by row; a grid has one row for each checkpoint."""
    match view:
        case "before" | "slide":
            return [_cell(key, 0.0), _cell(key, strength)]
        case "strengths":
            return [_cell(key, each_strength) for each_strength in STRENGTHS]
        case "checkpoints":
            return [Cell(checkpoint, strength, name) for checkpoint, name in checkpoints(key, watch)]
        case "grid":
            return [
                Cell(checkpoint, fine, f"{name}, {fine:g}")
                for checkpoint, name in checkpoints(key, watch)
                for fine in GRID_STRENGTHS
            ]
        case _:
            return [_cell(key, strength)]


def columns(view: str, count: int) -> int:
    """Return the number of images side by side."""
    return len(GRID_STRENGTHS) if view == "grid" else count


def _cell(key: str, strength: float) -> Cell:
    caption = _("without the adapter")
    if key and strength:
        caption = _("strength {strength:g}", strength=strength)
    return Cell(key, strength, caption)


def checkpoints(key: str, watch: RunWatcher) -> list[tuple[str, str]]:
    """Return (key, name) of at most five checkpoints of an adapter's run, evenly spaced, the finished file last.

    An adapter from elsewhere stands alone.
    """
    run = adapter_choices.run_of(key)
    if run is None:
        return [(key, _("this file") if key else _("without the adapter"))]
    state = watch.view(run).state
    end = f"{run.id}@{state.step}" if state.export else ""  # the same weights as the finished file
    saved = []
    for _unused, choice in reversed(adapter_choices.choices(watch)):
        run_id, _unused, step = choice.partition("@")
        if run_id == run.id and choice != end:
            saved.append((choice, _("step {step}", step=step) if step else _("finished")))
    if len(saved) <= MOST:
        return saved
    return [saved[round(place * (len(saved) - 1) / (MOST - 1))] for place in range(MOST)]
