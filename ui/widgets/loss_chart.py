"""Loss chart of runs: the values that chart.js draws, and what a screen reader says of them."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from trainer.i18n import _
from trainer.runs import View, events
from ui.widgets import run_html

POINTS = 400  # of each run


def chart(views: Sequence[tuple[str, View]]) -> dict[str, Any]:
    """Return what chart.js draws of runs, each with its label; the first is the one that is read out.

    The axis spans all steps of the runs, so that it shows what is left.
    """
    curves = [_curve(label, view) for label, view in views]
    label = ""
    if curves:
        label = events.describe_loss([(step, loss) for step, loss, _rate in curves[0]["points"]], curves[0]["steps"])
    return {"label": label, "runs": curves}


def _curve(label: str, view: View) -> dict[str, Any]:
    state = view.state
    points = [
        (step, loss, state.learning_rates.get(step, 0.0))
        for step, loss in events.loss_curve(state, points=POINTS)
        if isfinite(loss)
    ]
    held_out = sorted((step, loss) for step, loss in state.held_out.items() if isfinite(loss))
    return {
        "label": label,
        "steps": state.steps,
        "points": points,
        "held_out": held_out,
        "held_label": _lowest(held_out),
        "checkpoints": sorted(checkpoint.step for checkpoint in state.checkpoints),
        "images": _images(view),
    }


def _images(view: View) -> list[tuple[int, str]]:
    """Return (step, address) of the previews of the first prompt, which are shown while a step is read."""
    row = next(iter(view.state.previews_by_prompt().values()), {})
    return [(step, run_html.small_image(view.run.id, row[step])) for step in sorted(row)]


def _lowest(held_out: Sequence[tuple[int, float]]) -> str:
    """Describe the loss of the held-out images, and from which step on it was higher again; "" if there is none."""
    if not held_out:
        return ""
    step, loss = min(held_out, key=lambda point: (point[1], point[0]))
    latest = held_out[-1][1]
    if step == held_out[-1][0]:
        return _("Held-out images: {latest:.4f}, the lowest so far", latest=latest)
    return _("Held-out images: {latest:.4f}; lowest at step {step} ({loss:.4f})", latest=latest, step=step, loss=loss)
