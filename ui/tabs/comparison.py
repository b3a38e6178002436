"""Views of the Try-out tab: which adapter files stand side by side, at which strengths, in which order."""

from dataclasses import dataclass

from trainer.i18n import say
from ui.state import adapter_choices
from ui.state.run_watcher import Watch

VIEWS = [
    (say("One picture"), "one"), (say("Before and after"), "before"), (say("With a slider"), "slide"),
    (say("Strengths"), "strengths"), (say("Checkpoints"), "checkpoints"), (say("Checkpoints by strengths"), "grid"),
]  # fmt: skip
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
FINE = (0.4, 0.6, 0.8, 1.0, 1.2)
MOST = 5  # checkpoints


@dataclass(frozen=True)
class Cell:
    """One picture of a view: the key of an adapter, "" for none, its strength, and what is written below."""

    key: str
    strength: float
    caption: str


def cells(view: str, key: str, strength: float, watch: Watch) -> list[Cell]:
    """The pictures of a view, row by row; those of a grid have a checkpoint a row."""
    match view:
        case "before" | "slide":
            return [_cell(key, 0.0), _cell(key, strength)]
        case "strengths":
            return [_cell(key, one) for one in STRENGTHS]
        case "checkpoints":
            return [Cell(one, strength, name) for one, name in checkpoints(key, watch)]
        case "grid":
            rows = checkpoints(key, watch)
            return [Cell(one, fine, f"{name}, {fine:g}") for one, name in rows for fine in FINE]
        case _:
            return [_cell(key, strength)]


def columns(view: str, count: int) -> int:
    """Return the number of images side by side."""
    return len(FINE) if view == "grid" else count


def _cell(key: str, strength: float) -> Cell:
    told = say("strength {strength:g}", strength=strength) if key and strength else say("without the adapter")
    return Cell(key, strength, told)


def checkpoints(key: str, watch: Watch) -> list[tuple[str, str]]:
    """(key, name) of at most five checkpoints of the run that an adapter came from, evenly taken, the last at the end.

    An adapter that came from elsewhere stands alone.
    """
    run = adapter_choices.run_of(key)
    if run is None:
        return [(key, say("this file") if key else say("without the adapter"))]
    state = watch.look(run).state
    end = f"{run.id}@{state.step}" if state.export else ""  # the finished adapter once more
    found = [
        (one, say("step {step}", step=step) if (step := one.partition("@")[2]) else say("finished"))
        for _, one in adapter_choices.choices(watch)
        if one.partition("@")[0] == run.id and one != end
    ][::-1]
    if len(found) <= MOST:
        return found
    return [found[round(place * (len(found) - 1) / (MOST - 1))] for place in range(MOST)]
