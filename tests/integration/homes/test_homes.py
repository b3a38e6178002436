"""Home folders that former versions made, with their own code: projects, settings and runs open and go on."""

import shutil
from pathlib import Path

import pytest

from tests.integration.training.test_train import cases
from tests.workers import Workers
from trainer import paths, runs
from trainer.adapter_files import reader
from trainer.data import dataset
from trainer.runs import Run
from ui.state import page_memory, run_settings
from ui.widgets import settings_form

HOMES = sorted(path for path in Path(__file__).parent.iterdir() if (path / "outputs").is_dir())
SCHEDULE, AVERAGE, BATCHES = "the learning rate", "the average of the weights", "which images form a batch"
# What differs when a run goes on, by the version that began it.
DIFFERENCES = {"0.1.0": (SCHEDULE, AVERAGE, BATCHES), "0.2.0.dev0": (BATCHES,)}


@pytest.fixture(params=HOMES, ids=lambda path: path.name)
def version(request: pytest.FixtureRequest, home: Path) -> str:
    shutil.copytree(request.param, home, dirs_exist_ok=True)
    return str(request.param.name)


def test_projects_and_settings_open_and_runs_have_the_state_that_they_had(version: str) -> None:
    assert (page_memory.project(), page_memory.answer("rin", "trigger")) == ("rin", "miraxo")
    examples = dataset.read(paths.datasets() / "rin")
    assert len(examples) == 3
    assert all(example.caption for example in examples)
    entries = {"name": "rin", "dataset": "rin", **run_settings.load("gentle")}
    gentle = settings_form.build(settings_form.entries(), entries)
    assert (gentle.optimizer.learning_rate, gentle.training.ema_decay) == (5e-5, 0.9)
    views = {run.id: runs.look(run) for run in runs.all_runs()}
    expected = {name: name for name in ("finished", "failed", "stopped", "interrupted")}
    expected |= dict.fromkeys(("averaged", "dora", "created"), "interrupted")
    assert {name: view.status for name, view in views.items()} == expected
    assert sorted(views["finished"].state.losses) == [1, 2, 3, 4, 5, 6]
    assert views["failed"].state.message
    assert reader.read(views["finished"].run.export)
    assert views["finished"].run.config().training.steps == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(("averaged", "stopped", "failed"), pytest.mark.nightly, ["averaged"]))
def test_runs_go_on_and_say_what_differs(version: str, name: str, workers: Workers) -> None:
    run = runs.find(name)
    if name == "stopped":
        text = run.config_file.read_text()
        run.config_file.write_text(text.replace("steps = 4000", "steps = 6", 1))
    assert workers.work(run) == 0, runs.log_tail(run)
    state = runs.look(run).state
    assert (state.end, state.step) == ("finished", 6)
    warnings = " ".join(state.warnings)
    begins = name == "failed"
    for difference in (SCHEDULE, AVERAGE, BATCHES):
        concerns = difference in DIFFERENCES[version] and not begins
        concerns = concerns and (difference != AVERAGE or name == "averaged")
        assert (difference in warnings) == concerns, (difference, warnings)
    assert (f"Limner {version} saved step" in warnings) != begins


@pytest.mark.slow
def test_a_dora_run_goes_on_or_says_why_not(version: str, workers: Workers) -> None:
    run = Run(paths.outputs() / "dora")
    code = workers.work(run)
    state = runs.look(run).state
    if version == "0.1.0":
        assert (code, state.end) == (2, "failed")
        assert "DoRA run was begun by Limner 0.1.0" in state.message
        assert "start it again" in state.remedy
    else:
        assert (code, state.end) == (0, "finished")
