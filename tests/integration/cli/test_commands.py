"""`limner queue`: the same queue as on the page."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests import tiny
from tests.integration.runs.test_processes import limner
from tests.integration.training.test_train import finish, settings
from tests.unit.recipes.examples import GUI, RECIPES
from tests.unit.runs.test_run import held
from tests.unit.ui.tabs.test_queue import NAMES, waiting
from trainer import config, runs
from trainer.adapter_files import reader
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


def sample(folder: Path, *arguments: object) -> dict[str, Any]:
    """Generate an image; returns the settings in its file."""
    out = folder / "x.png"
    done = CliRunner().invoke(app, ["sample", "--prompt", "rin", "--out", str(out), *map(str, arguments)])
    assert done.exit_code == 0, done.exception
    with Image.open(out) as image:
        facts: dict[str, Any] = json.loads(image.text["limner"])
        return facts | {"pixels": image.tobytes()}


@pytest.mark.slow
def test_settings_follow_from_the_base_and_the_adapter(character: Path, tiny_sd: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_sd, tmp_path / "anything-v3_lcm")
    suited = sample(tmp_path, "--base", base)
    assert (suited["steps"], suited["guidance"], suited["clip_skip"]) == (8, 1.5, 2)
    typed = sample(tmp_path, "--base", base, "--steps", 2, "--guidance", 3, "--clip-skip", 1)
    assert (typed["steps"], typed["guidance"], typed["clip_skip"]) == (2, 3, 1)
    run = runs.create(settings(tiny_sd, training__steps=1))
    finish(run)
    assert sample(tmp_path, "--base", base, "--steps", 2, "--adapter", run.export)["clip_skip"] == 1
    file = reader.read(run.export)
    save_file(dict(file.tensors), tmp_path / "two.safetensors", metadata={"ss_clip_skip": "2"})
    assert (
        sample(tmp_path, "--base", tiny_sd, "--steps", 2, "--adapter", tmp_path / "two.safetensors")["clip_skip"] == 2
    )
    own = sample(tmp_path, "--base", tiny_sd, "--steps", 2)
    tiny._vae().save_pretrained(tmp_path / "vae")
    other = sample(tmp_path, "--base", tiny_sd, "--steps", 2, "--vae", tmp_path / "vae")
    assert other["pixels"] != own["pixels"]
    assert other | {"pixels": b""} == own | {"pixels": b""}, "paths stay private"


def test_a_recipe_becomes_a_config_for_a_dataset(character: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "Mira's recipe.json", tmp_path / "mira.toml"
    recipe.write_text(json.dumps(GUI | {"pretrained_model_name_or_path": "owner/name"}), encoding="utf-8")
    done = limner("import-recipe", recipe, "--dataset", "rin", "--out", out)
    assert done.returncode == 0, done.stderr
    settings = config.load(out)
    assert (settings.name, settings.dataset, settings.model.base) == ("mira", "rin", "owner/name")
    assert settings.training.steps == 10 * 7  # of 14 images, two a batch
    assert "scale_weight_norms" in done.stderr
    assert "private" not in done.stdout + done.stderr + out.read_text(encoding="utf-8")
    printed = limner("import-recipe", recipe)
    assert tomllib.loads(printed.stdout)["name"] == "Mira-s-recipe"


def test_a_config_and_a_run_become_a_file_for_kohyas_scripts(character: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text('name = "a"\ndataset = "rin"\n[model]\nbase = "owner/name"\n', encoding="utf-8")
    for source in (run, run / "config.toml"):
        done = limner("export-recipe", source, "--out", tmp_path / "kohya.toml")
        assert done.returncode == 0, done.stderr
        values = tomllib.loads((tmp_path / "kohya.toml").read_text(encoding="utf-8"))
        assert values["network_module"] == "networks.lora"
        assert values["max_train_steps"] > 100
        assert "proj_in" in done.stderr


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    done = limner("import-recipe", tmp_path / "notes.txt")
    assert done.returncode != 0
    assert "not a recipe" in done.stderr
    (tmp_path / "a.toml").write_text(RECIPES["script.toml"], encoding="utf-8")
    assert "no folder" in limner("import-recipe", tmp_path / "a.toml", "--out", tmp_path / "no" / "x").stderr
