"""What the loss chart gets: points without gaps in meaning, several runs, and a sentence for screen readers."""

import json
from pathlib import Path

import pytest

from tests.unit.ui.widgets.test_run_html import STEP, state
from trainer.runs import Run, View, events
from ui.widgets import loss_chart


def view(*reported: events.Event) -> View:
    return View(Run(Path("run")), "running", state(*reported))


def test_the_chart_spans_all_steps_and_says_what_it_shows() -> None:
    made = events.Preview(step=10, file="previews/000010_0.png", prompt="miraxo", seed=1)
    saved = [events.Checkpoint(step=step, folder=f"checkpoints/{step}") for step in (20, 10)]
    run = view(*(events.Step(step=step, loss=1 / step, **STEP) for step in range(1, 21)), made, *saved)
    drawn = loss_chart.chart([("rin", run), ("again", run)])
    assert "at step 20 of 40" in drawn["label"]
    first, second = drawn["runs"]
    assert (first["label"], second["label"], first["steps"]) == ("rin", "again", 40)
    ((step, address),) = first["images"]
    assert (first["checkpoints"], step) == ([10, 20], 10)
    assert address.startswith("/media/run/run/000010_0.png/small?")
    assert first["points"][-1] == (20, 0.05, STEP["learning_rate"])
    assert events.smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert events.smooth([1.0, 3.0], 0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])


def test_the_chart_takes_odd_losses() -> None:
    assert loss_chart.chart([]) == {"label": "", "runs": []}
    assert loss_chart.chart([("x", view())])["label"] == ""
    losses = enumerate((1.0, float("nan"), 2.0), 1)
    drawn = loss_chart.chart([("x", view(*(events.Step(step=step, loss=loss, **STEP) for step, loss in losses)))])
    assert [step for step, *_ in drawn["runs"][0]["points"]] == [1, 3]
    json.dumps(drawn, allow_nan=False)
