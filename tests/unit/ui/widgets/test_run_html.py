"""What is drawn of a run: the chart, the status, the previews, always escaped."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trainer import runs, storage
from trainer.config import build
from trainer.i18n import duration
from trainer.runs import Run, View, events
from ui.state.run_watcher import RunWatcher, label, log_tail, stamp
from ui.widgets import run_html

STEP = {"learning_rate": 0.1, "grad_norm": 1.0, "seconds": 1.0, "memory": 1}


@pytest.fixture
def run(home: Path) -> Run:
    return runs.create(build({"name": "rin", "dataset": "rin"}), home / "outputs" / "2026-11-24_140500_rin")


def state(*more: events.Event, steps: int = 40) -> events.State:
    begun = [events.Started(step=0, steps=steps, pid=1, device="CPU")]
    return events.fold(events.State(), [*begun, *more])


def view(run: Run, status: str, *more: events.Event) -> View:
    return View(run, status, state(*more))


def test_the_time_left_is_one_figure(run: Run) -> None:
    begun = datetime(2026, 1, 1, tzinfo=UTC)

    def at(step: int, second: float) -> events.Step:
        return events.Step(step=step, loss=1, **STEP, time=begun + timedelta(seconds=second))

    even = view(run, "running", *(at(step, step) for step in range(1, 31)))
    assert run_html.time_left(even) == "about 10 s left"
    slower = [at(step, step if step <= 15 else 15 + 4 * (step - 15)) for step in range(1, 31)]
    assert run_html.time_left(view(run, "running", *slower)) == "about 25 s left"
    assert run_html.time_left(view(run, "stopped", *slower)) == ""


def test_where_there_are_several_cards_it_says_which(run: Run) -> None:
    began = events.Began(pid=1, cards=("0", "2"))
    assert "on CPU · cards 0, 2" in run_html.status(view(run, "running", began, events.Warned(message="x")))
    assert "card" not in run_html.status(view(run, "running"))


def test_the_load_of_this_machine_is_not_shown_for_a_run_on_another(run: Run, home: Path) -> None:
    step = events.Step(step=1, loss=1, **STEP)
    assert "busy" in run_html.status(view(run, "running", step))
    storage.write(run.folder / "cluster", "ray://there:10001")
    assert "busy" not in run_html.status(view(run, "running", step))


def test_a_failure_is_an_alert_with_cause_and_remedy_and_no_traceback(run: Run) -> None:
    failed = events.Failed(message="Out of <memory>.", remedy="Lower it.", traceback="Traceback /secret/path")
    drawn = run_html.status(view(run, "failed", failed))
    assert "role='alert'" in drawn
    assert "Out of &lt;memory&gt;." in drawn
    assert "Lower it." in drawn
    assert "/secret" not in drawn


def test_an_interrupted_run_offers_to_resume_from_its_checkpoint(run: Run) -> None:
    checkpoint = events.Checkpoint(step=25, folder="checkpoints/000025")
    drawn = run_html.status(view(run, "interrupted", checkpoint))
    assert "interrupted" in drawn
    assert "from step 25" in drawn


def test_previews_are_a_table_of_prompts_by_steps_and_escaped(run: Run) -> None:
    made = [
        events.Preview(step=step, file=f"previews/{step:06d}_{number}.png", prompt=f"<b>{number}", seed=1)
        for step in (10, 20)
        for number in (0, 1)
    ]
    drawn = run_html.previews(view(run, "running", *made))
    assert drawn.count("<tr>") == 3
    assert "<b>0" not in drawn
    assert drawn.index("000010_0") < drawn.index("000020_0") < drawn.index("000010_1")
    assert "class='pixels'" in drawn  # of micro
    real = run.config().model_copy(update={"model": run.config().model.model_copy(update={"base": "x/y"})})
    run.save_config(real)
    assert "class='pixels'" not in run_html.previews(view(run, "running", *made))


def test_warnings_are_escaped() -> None:
    assert "&lt;i&gt;" in run_html.warnings(state(events.Warned(message="<i>")))
    assert run_html.warnings(state()) == ""


@pytest.mark.parametrize(("count", "text"), [(2, "a few seconds"), (41, "40 s"), (200, "3 min"), (9000, "2.5 h")])
def test_time_in_words(count: float, text: str) -> None:
    assert duration(count) == text


def test_the_pill_shows_only_what_is_under_way(run: Run) -> None:
    assert run_html.pill(None) == ""
    assert run_html.pill(view(run, "finished")) == ""
    assert "Training 25%" in run_html.pill(view(run, "running", events.Step(step=10, loss=1.0, **STEP)))
    assert "Training 0% · 2 more runs<" in run_html.pill(view(run, "running"), 2)
    runs.request(run, "stop")
    assert "Stopping" in run_html.pill(view(run, "running"))


def test_a_watch_reads_only_what_is_new_and_its_stamp_changes_with_it(run: Run) -> None:
    watch = RunWatcher()
    first = watch.find(run.id)
    assert watch.find("nobody") is None
    assert watch.find("../x") is None
    run.report(events.Started(step=0, steps=5, pid=1, device="CPU"))
    second = watch.find(run.id)
    assert stamp(first) != stamp(second)
    assert stamp(second) == stamp(watch.find(run.id))
    assert second.status == "interrupted"
    assert watch.active() is None
    assert watch.default() == run.id


def test_names_and_logs_for_people(run: Run, home: Path) -> None:
    assert label(run) == "rin, 24 Nov 14:05:00"
    assert label(Run(home / "outputs" / "mine")) == "mine"
    (run.folder / "worker.log").write_text(f"File {home}/outputs/x\n")
    assert str(home) not in log_tail(run)


def test_a_run_that_finished_before_its_last_step_is_done(run: Run) -> None:
    step = events.Step(step=10, loss=1, **STEP)
    assert run_html.progress(view(run, "stopped", step)) == 0.25
    assert run_html.progress(view(run, "finished", step)) == 1.0
