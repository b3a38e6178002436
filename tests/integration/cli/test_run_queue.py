"""`limner queue`: the same queue as on the page."""

from pathlib import Path

import pytest

from tests.integration.runs.test_processes import limner
from tests.unit.runs.test_run import held
from tests.unit.ui.tabs.test_queue import NAMES, waiting
from trainer import runs
from trainer.runs import Run

__all__ = ["waiting"]


def test_the_queue_in_the_command_line(waiting: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{place} {name} Waiting" for place, name in enumerate(NAMES, 1)]
    assert limner("queue").stdout.split() == " ".join(lines).split()
    done = limner("queue", "move", NAMES[2], "1")
    assert done.stdout.split()[1::3] == [NAMES[2], NAMES[0], NAMES[1]]
    monkeypatch.chdir(waiting[0].folder.parent)
    assert "On hold" in limner("queue", "hold", waiting[0].folder.name).stdout
    assert waiting[0].on_hold
    assert "On hold" not in limner("queue", "release", str(waiting[0].folder)).stdout
    done = limner("queue", "hold", "none")
    assert (done.returncode, done.stderr) == (
        2,
        "There is no run 'none'. Give its folder, or its name under outputs.\n",
    )
    started: list[Run] = []
    monkeypatch.setattr(runs, "start", started.append)
    assert limner("queue", "retry", NAMES[0]).stderr.startswith("This run is still running.")
    (waiting[0].folder / "ask" / "start").unlink()
    with held(waiting[0].lock):
        assert limner("queue").stdout.split()[:3] == ["-", NAMES[0], "starting"], "it has what it waited for"
    assert limner("queue", "retry", NAMES[0]).stdout.split() == [started[0].id]
    assert started[0].config() == waiting[0].config()


def test_a_run_is_queued_for_each_file_and_each_combination(
    character: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Run] = []
    monkeypatch.setattr(runs, "start", started.append)
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\ndataset = "rin"\n')
    grid = ["--grid", "optimizer.learning_rate=1e-4, 2e-4", "--grid", "schedule.kind=constant,linear"]
    done = limner("queue", "add", str(tmp_path / "one.toml"), str(tmp_path / "two.toml"), "--set", "seed=7", *grid)
    assert done.returncode == 0, done.stderr
    made = [run.config() for run in started]
    assert [(each.name.partition("-")[0], each.optimizer.learning_rate, each.schedule.kind) for each in made] == [
        (name, rate, kind) for name in ("one", "two") for rate in (1e-4, 2e-4) for kind in ("constant", "linear")
    ]
    assert ({each.seed for each in made}, made[0].name) == ({7}, "one-learning_rate-1e-4-kind-constant")
    assert done.stdout.splitlines()[0] == f"{started[0].id}  optimizer.learning_rate=1e-4  schedule.kind=constant"
    started.clear()
    for missing in ('dataset = "absent"\n', 'dataset = "rin"\n[regularization]\ndataset = "absent"\n'):
        (tmp_path / "two.toml").write_text(f'name = "two"\n{missing}')
        done = limner("queue", "add", str(tmp_path / "one.toml"), str(tmp_path / "two.toml"))
        assert (done.returncode, started) == (2, []), "nothing is queued unless all can be"
        assert "absent" in done.stderr
    done = limner("queue", "add", str(tmp_path / "one.toml"), "--grid", f"seed={','.join(map(str, range(201)))}")
    assert (done.returncode, started) == (2, [])
    assert "Add at most 200 at once" in done.stderr
