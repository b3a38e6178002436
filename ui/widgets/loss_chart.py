"""Loss chart of runs: the values that chart.js draws, and what a screen reader says of them."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from trainer.i18n import _
from trainer.runs import View, events

POINTS = 400  # of each run


def chart(views: Sequence[tuple[str, View]]) -> dict[str, Any]:
    """Return what chart.js draws of runs, each with its label; the first is the one that is read out.

    The axis spans all steps of the runs, so that it shows what is left.
    """
    curves = [_curve(label, view.state) for label, view in views]
    return {"label": _description(curves[0]) if curves else "", "runs": curves}


def _curve(label: str, state: events.State) -> dict[str, Any]:
    points = [
        (step, loss, state.learning_rates.get(step, 0.0))
        for step, loss in events.loss_curve(state, points=POINTS)
        if isfinite(loss)
    ]
    return {"label": label, "steps": state.steps, "points": points}


def _description(curve: dict[str, Any]) -> str:
    points = curve["points"]
    if len(points) < 2:
        return ""
    averages = events.smooth([loss for _step, loss, _rate in points])
    return _(
        "Loss by step: {loss:.3f} at step {step} of {steps}, {first:.3f} at the start",
        loss=averages[-1],
        step=points[-1][0],
        steps=max(curve["steps"], points[-1][0]),
        first=averages[0],
    )
