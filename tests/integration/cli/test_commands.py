"""`limner queue`: the same queue as on the page."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests import tiny
from tests.integration.runs.test_processes import limner
from tests.integration.training.test_train import finished
from tests.unit.runs.test_run import held
from tests.unit.ui.tabs.test_queue import NAMES, waiting
from trainer import runs
from trainer.cli.commands import app
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
    sentence = "There is no run 'none'. Give its folder, or its name under outputs.\n"
    assert (done.returncode, done.stderr) == (2, sentence)
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
    own = 'dataset = "rin"\n'
    base = f'{own}[model]\nbase = "models/absent.safetensors"\n'
    for missing in ('dataset = "absent"\n', f'{own}[regularization]\ndataset = "absent"\n', base):
        (tmp_path / "two.toml").write_text(f'name = "two"\n{missing}')
        done = limner("queue", "add", str(tmp_path / "one.toml"), str(tmp_path / "two.toml"))
        assert (done.returncode, started) == (2, []), "nothing is queued unless all can be"
        assert "absent" in done.stderr
    assert limner("queue", "add", str(tmp_path / "one.toml"), "--on", "nonsense").returncode == 2
    done = limner("queue", "add", str(tmp_path / "one.toml"), "--grid", f"seed={','.join(map(str, range(201)))}")
    assert (done.returncode, started) == (2, [])
    assert "Add at most 200 at once" in done.stderr


def sample(folder: Path, *arguments: object) -> dict[str, Any]:
    """Generate an image; returns the settings in its file."""
    out = folder / "x.png"
    done = CliRunner().invoke(app, ["sample", "--prompt", "rin", "--out", str(out), *map(str, arguments)])
    assert done.exit_code == 0, done.exception
    with Image.open(out) as image:
        facts: dict[str, Any] = json.loads(image.text["limner"])
        return facts | {"pixels": image.tobytes()}


def test_an_image_has_the_clip_skip_of_its_adapter(home: Path, tiny_sd: Path, tmp_path: Path) -> None:
    file = tmp_path / "two.safetensors"
    save_file({"x": torch.zeros(1)}, file, metadata={"ss_clip_skip": "2"})
    image = sample(tmp_path, "--base", tiny_sd, "--steps", 1, "--adapter", f"{file}:0")
    assert image["clip_skip"] == 2


@pytest.mark.slow
def test_settings_follow_from_the_base_and_the_adapter(character: Path, tiny_sd: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_sd, tmp_path / "anything-v3_lcm")
    suited = sample(tmp_path, "--base", base)
    assert (suited["steps"], suited["guidance"], suited["clip_skip"]) == (8, 1.5, 2)
    typed = sample(tmp_path, "--base", base, "--steps", 2, "--guidance", 3, "--clip-skip", 1)
    assert (typed["steps"], typed["guidance"], typed["clip_skip"]) == (2, 3, 1)
    run = finished(tiny_sd, training__steps=1)
    assert sample(tmp_path, "--base", base, "--steps", 2, "--adapter", run.export)["clip_skip"] == 1
    own = sample(tmp_path, "--base", tiny_sd, "--steps", 2)
    tiny._vae().save_pretrained(tmp_path / "vae")
    other = sample(tmp_path, "--base", tiny_sd, "--steps", 2, "--vae", tmp_path / "vae")
    assert other["pixels"] != own["pixels"]
    assert other | {"pixels": b""} == own | {"pixels": b""}, "paths stay private"
