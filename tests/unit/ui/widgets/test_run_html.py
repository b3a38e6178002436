"""What is drawn of a run: the chart, the status, the previews, always escaped."""

import re
from pathlib import Path

import pytest

from tests.conftest import small_disk
from trainer import runs, storage
from trainer.config import build
from trainer.i18n import duration
from trainer.runs import Run, View, events
from ui.state.run_watcher import label, log_tail
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
    def left(status: str, *seconds: float) -> str:
        made = [events.Step(step=n, loss=1, **STEP | {"seconds": each}) for n, each in enumerate(seconds, 1)]
        return run_html.time_left(view(run, status, *made))

    assert left("running", *[1] * 30) == "about 10 s left"
    slower = [1] * 15 + [4] * 15
    assert left("running", *slower) == "about 25 s left"
    assert left("stopped", *slower) == ""
    texts = ["a few seconds", "40 s", "3 min", "2.5 h", "5 days"]
    assert [duration(count) for count in (2, 41, 200, 9000, 415_000)] == texts


def test_a_run_that_a_full_disk_ended_says_so(home: Path, tmp_path: Path) -> None:
    """Its worker could not write why it ended."""
    with small_disk(tmp_path / "small", "1m") as disk:
        run = runs.create(build({"name": "rin", "dataset": "rin"}), disk / "2026-11-24_140500_rin")
        (run.folder / "checkpoints" / "000025").mkdir(parents=True)
        drawn = run_html.status(view(run, "interrupted"))
    assert "disk is full" in drawn
    assert "from step 25" in drawn


@pytest.mark.parametrize("status", ["stopped", "interrupted", "failed"])
def test_the_file_of_a_run_that_was_to_go_on_stays_in_sight(run: Run, status: str) -> None:
    finished = events.Finished(step=30, export=run.export.name)
    assert "/download/" not in run_html.status(view(run, status, finished)), "it was deleted"
    storage.write(run.export, "adapter")
    drawn = run_html.status(view(run, status, finished))
    assert f"/download/{run.id}/{run.export.name}" in drawn
    assert "The adapter of step 30 is still here." in drawn


def test_the_status_says_where_a_run_is_and_why_it_failed(run: Run, home: Path) -> None:
    step = events.Step(step=10, loss=1, **STEP)
    began = events.Began(pid=1, cards=("0", "2"))
    assert "on CPU · cards 0, 2" in run_html.status(view(run, "running", began, events.Warned(message="x")))
    stopped = view(run, "stopped", step, events.Checkpoint(step=10, folder="checkpoints/000010"))
    assert "no longer there: <b>Resume</b> starts again" in run_html.status(stopped)
    (run.folder / "checkpoints" / "000025").mkdir(parents=True)
    assert "continues from here" in run_html.status(stopped)
    drawn = run_html.status(view(run, "interrupted"))
    assert "interrupted" in drawn
    assert "from step 25" in drawn
    assert "busy" in run_html.status(view(run, "running", step))
    storage.write(run.folder / "cluster", "ray://there:10001")
    assert "busy" not in run_html.status(view(run, "running", step)), "the load of this machine is not that of another"
    assert run_html.progress(view(run, "stopped", step)) == 0.25
    assert run_html.progress(view(run, "finished", step)) == 1.0, "it may finish before its last step"
    assert "&lt;i&gt;" in run_html.warnings(state(events.Warned(message="<i>")))
    known = events.Warned(message="Two images are the same.", about_images=True)
    assert run_html.warnings(state()) == run_html.warnings(state(known)) == "", "the Images tab says it"
    failed = events.Failed(message="Out of <memory>.", remedy="Lower it.", traceback="Traceback /secret/path")
    drawn = run_html.status(view(run, "failed", failed))
    assert all(words in drawn for words in ('role="alert"', "Out of &lt;memory&gt;.", "Lower it."))
    assert "/secret" not in drawn


def test_the_bar_moves_while_nobody_knows_how_far_it_is(run: Run) -> None:
    def bar(status: str, *more: events.Event) -> list[str]:
        step = events.Step(step=10, loss=1, **STEP)
        return re.findall(r'<i></i>|(?<=valuenow=")\d+', run_html.status(view(run, status, step, *more)))

    loading, encoding = (events.Phase(name="Load", done=0, total=1), events.Phase(name="Encode", done=3, total=4))
    assert bar("running") == bar("interrupted", loading) == ["25"]
    assert bar("running", encoding) == ["75"]
    assert bar("running", loading) == ["<i></i>"]
    assert bar("waiting") == ["<i></i>"], "its process has not said anything yet"


def test_previews_are_the_newest_and_a_table_of_all(run: Run) -> None:
    files = {f"previews/{step:06d}_{number}.png": (step, f"<b>{number}") for step in (10, 20) for number in (0, 1)}
    made = [events.Preview(step=step, file=file, prompt=prompt, seed=1) for file, (step, prompt) in files.items()]
    newest, drawn = (render(view(run, "running", *made)) for render in (run_html.newest, run_html.previews))
    assert re.findall(r"media/run/[^/]*/(\w+).png/small", newest) == ["000020_0", "000020_1"]
    assert "Step 20: &lt;b&gt;0" in newest
    assert drawn.count("<tr>") == 3
    assert "<b>0" not in newest + drawn
    assert drawn.index("000010_0") < drawn.index("000020_0") < drawn.index("000010_1")
    assert 'class="pixels"' in drawn  # of micro
    real = run.config().model_copy(update={"model": run.config().model.model_copy(update={"base": "x/y"})})
    run.save_config(real)
    assert 'class="pixels"' not in run_html.previews(view(run, "running", *made))


def test_the_dock_shows_only_what_is_under_way(run: Run) -> None:
    def dock(view: View | None, more: int = 0) -> str:
        return run_html.dock(view, more, [("stop", "Stop", "edit", "stop")])

    assert dock(None) == dock(view(run, "finished")) == ""
    preview = events.Preview(step=10, prompt="a", seed=1, file="previews/10_0.png")
    begun = dock(view(run, "running", events.Step(step=10, loss=1.0, **STEP), preview))
    for part in ("Training · 25%", 'data-act="stop"', f'src="/media/run/{run.id}/10_0.png/small'):
        assert part in begun
    assert "Training · 0% · 2 more runs<" in dock(view(run, "running"), 2)
    runs.request(run, "stop")
    assert "Stopping" in dock(view(run, "running"))


def test_names_and_logs_for_people(run: Run, home: Path) -> None:
    assert label(run) == "rin, 24 Nov 14:05"
    assert label(Run(home / "outputs" / "mine")) == "mine"
    (run.folder / "worker.log").write_text(f"File {home}/outputs/x\n")
    assert str(home) not in log_tail(run)
