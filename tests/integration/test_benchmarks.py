"""Benchmarks: arithmetic against figures by hand, recipes that are valid settings, and a small run of one."""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomlkit

from benchmarks import checkpoints, fleet, quality, recipe_losses, recipes, report, subjects
from tests.conftest import CHECKOUT, unmeasured
from trainer import config
from trainer.cluster import relay
from trainer.recipes import read as read_recipe


def picture(**values: object) -> dict[str, object]:
    return {
        "subject": "miraxo", "recipe": "ours", "rate": "1", "seed": "0", "step": 4, "exposures": 32, "seconds": 2.0,
        "prompts": "called", "number": 0, "noise": 0, "seen": 1, "adherence": 1.0, "likeness": 0.5, "copy": 0.0,
        "diversity": 1.0, **values,
    }  # fmt: skip


def run(recipe: str, rate: str, seconds: float, likeness: float) -> list[dict[str, object]]:
    rows = [
        picture(recipe=recipe, rate=rate, number=number, noise=noise, seconds=seconds, likeness=likeness)
        for number in range(2)
        for noise in range(2)
    ]
    early = picture(recipe=recipe, rate=rate, step=2, exposures=16, seconds=seconds / 2, likeness=likeness / 2)
    without = [
        picture(recipe=recipe, rate=rate, prompts=kind, seen=0, likeness="", copy="", diversity="", drift=0.25)
        for kind in ("plain", "people")
    ]
    return [{**early, "diversity": ""}, *rows, *without]


@pytest.mark.parametrize(
    ("points", "target", "at"),
    [
        ([(10, 0.5), (20, 1.0)], 0.75, 15.0),
        ([(10, 0.5), (20, 1.0)], 0.25, 5.0),
        ([(10, 0.9), (20, 0.5), (30, 1.0)], 0.75, 25.0),  # it has to stay there
        ([(10, 0.5)], 0.75, None),
    ],
)
def test_where_a_curve_reaches_a_target(points: report.Curve, target: float, at: float | None) -> None:
    assert report.reached(points, target) == at


def test_intervals_hold_the_mean_and_vanish_without_spread() -> None:
    assert report.bootstrap({"a": [np.ones(4)], "b": [np.ones(4)]}) == (1, 1, 1)
    mean, low, high = report.bootstrap({"a": [np.array([0.0, 1.0] * 8)], "b": [np.array([0.0, 1.0] * 8)]})
    assert mean == 0.5
    assert 0.2 < low < 0.5 < high < 0.8


def test_the_table_of_two_runs(tmp_path: Path) -> None:
    figures = tmp_path / "figures.csv"
    report.append(figures, run("ours", "1", seconds=2.0, likeness=0.8))
    report.append(figures, run("kohya", "5", seconds=8.0, likeness=0.4))
    lines = report.table(figures).splitlines()
    (ours,) = (line for line in lines if line.startswith("| ours | 1 x 1"))
    assert "| 32 | 2 | 1.00 (1.00 to 1.00) | 0.80 (0.80 to 0.80) |" in ours
    theirs = [line for line in lines if line.startswith("| kohya, rate x 5")]
    assert "0.25 (0.25 to 0.25)" in theirs[0]
    assert theirs[0].endswith("| -0.40 (-0.40 to -0.40), 0 of 1 above |")
    assert theirs[1] == "| kohya, rate x 5 | 16: 0.20, 32: 0.40 |"
    # At .392, ours is after 15.68 exposures, theirs after 31.36.
    ratios = "1 of 1 | 1.00 (1.00 to 1.00) | 0.25 (0.25 to 0.25) | 0.50 (0.50 to 0.50), 1 of 1"
    assert theirs[2] == f"| kohya, rate x 5 | {ratios} |"


def test_the_table_of_two_base_models_has_the_runs_of_both(tmp_path: Path) -> None:
    narrow, wide = tmp_path / "narrow.csv", tmp_path / "wide.csv"
    report.append(narrow, run("ours", "1", seconds=2.0, likeness=0.8))
    report.append(narrow, [{**row, "seed": "1"} for row in run("ours", "1", seconds=2.0, likeness=0.1)])
    report.append(narrow, run("kohya", "1", seconds=2.0, likeness=0.2))
    report.append(wide, run("ours", "1", seconds=8.0, likeness=0.9))
    assert report.across({"narrow": narrow, "twice": wide}, ["likeness", "drift"]).splitlines()[2:] == [
        "| **characters** | | | | |",
        "| ours | narrow | 1 x 1 | 0.80 (0.80 to 0.80) | 0.25 (0.25 to 0.25) |",
        "| ours | twice | 1 x 1 | 0.90 (0.90 to 0.90) | 0.25 (0.25 to 0.25) |",
    ]


def test_a_run_in_the_csv_is_not_done_again(tmp_path: Path) -> None:
    arguments = ["run", str(tmp_path), str(tmp_path / "figures.csv"), "--only", "ours", "--seeds", "1"]
    parsed = quality._arguments(arguments)
    assert len(quality.waiting(parsed)) == len(subjects.CHARACTERS) + len(subjects.STYLES)
    report.append(parsed.csv, [picture()])
    assert "miraxo" not in [task.subject for task in quality.waiting(parsed)]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_settings(name: str) -> None:
    for subject in ("miraxo", "pixelArt"):
        taught = subjects.find(Path("judge"), subject)
        config = recipes.settings(recipes.RECIPES[name], taught, 12, rate=5.0, seed=1)
        plain = recipes.settings(recipes.RECIPES[name], taught, 12, rate=1.0, seed=1)
        assert config.optimizer.learning_rate == pytest.approx(5 * plain.optimizer.learning_rate)


@pytest.mark.parametrize("name", {**recipes.PEERS, **recipes.GUARDED})
def test_what_others_do_is_theirs_alone(name: str) -> None:
    """Nothing comes from our presets, in which a character and a style differ."""
    character, style = (
        recipes.settings(recipes.RECIPES[name], subjects.find(Path("judge"), subject), 12, rate=1.0, seed=1)
        for subject in ("miraxo", "pixelArt")
    )
    named = {key: getattr(style, key) for key in ("name", "dataset", "trigger", "preset")}
    assert character.model_copy(update=named) == style


@pytest.mark.nightly
def test_many_pictures_in_small() -> None:
    """It fails if the page, which it calls as a browser does, kept other images than were uploaded."""
    command = [sys.executable, "-m", "benchmarks.many", "--pictures", "12", "--side", "64"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("12 pictures")


@pytest.mark.nightly
def test_a_soak_in_small() -> None:
    """It calls the page as a browser does, and so has to know what its functions take."""
    command = [sys.executable, "-m", "benchmarks.soak", "--steps", "20", "--pictures", "2"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 pictures in" in done.stdout


@pytest.mark.parametrize("name", recipe_losses.RECIPES)
def test_recipes_whose_losses_are_compared_are_read_whole(tmp_path: Path, name: str) -> None:
    values = {**recipe_losses.COMMON, **recipe_losses.RECIPES[name][0]}
    (tmp_path / "recipe.toml").write_text(tomlkit.dumps(values), encoding="utf-8")
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert not any("no counterpart" in note for note in recipe.notes)
    settings = config.build({"name": "x", "dataset": "x", **config.merge(recipe.settings, {"model": {"base": "a/b"}})})
    assert settings.training.steps == recipe_losses.STEPS
    assert settings.adapter.targets == ("conv" if "network_args" in values else "attention+ff")


def checkpoint(step: int, score: float, held_out: float, better: str = "", worse: str = "") -> checkpoints.Line:
    line = {"subject": "miraxo", "seed": 0, "step": step, "score": score, "better": better, "worse": worse}
    return line | {"held out": held_out, "ends": 80}


def test_the_measured_choice_is_better_in_something_and_worse_in_nothing_or_the_last(tmp_path: Path) -> None:
    runs = [
        checkpoint(20, 0.5, 0.3, "leak drift", "likeness"),
        checkpoint(40, 0.9, 0.2, "drift"),
        checkpoint(80, 0.8, 0.4, "leak drift"),
    ]
    last = checkpoint(160, 0.7, 0.5)
    assert checkpoints.choose([*runs, last]) == runs[2]
    assert checkpoints.choose([runs[0], last]) == last
    assert checkpoints.lowest([*runs, last]) == runs[1]
    checkpoints.append(tmp_path / "figures.csv", [*runs, last])
    assert checkpoints.table(tmp_path / "figures.csv").splitlines()[2:] == [
        "| miraxo | 0 | 0.70 (step 160) | 0.80 (step 80) | 0.90 (step 40) | 0.80 (step 80) | 0.90 (step 40) |",
        "| mean | | 0.70 | 0.80 | 0.90 | 0.80 | 0.90 |",
        "| gain | | +0.000 (+0.000 to +0.000) | +0.100 (+0.100 to +0.100) | +0.200 (+0.200 to +0.200) "
        "| +0.100 (+0.100 to +0.100) | +0.200 (+0.200 to +0.200) |",
        "",
        "Steps that ending there would save: 50% of 1 runs.",
    ]


def test_a_run_ends_after_two_measurements_without_a_lower_loss() -> None:
    assert checkpoints.ends({0: 0.5, 10: 0.4, 20: 0.45, 30: 0.41, 40: 0.3}, last=44) == 30
    assert checkpoints.ends({0: 0.5, 10: 0.4, 20: 0.45, 30: 0.39, 40: 0.4}, last=44) == 44
    assert checkpoints.ends({0: 0.5, 10: float("nan"), 20: float("nan"), 30: 0.4}, last=44) == 20


def test_a_program_that_is_watched_imports_what_it_imports_alone(tmp_path: Path) -> None:
    """The folder of the benchmarks has modules named like packages, such as transformers."""
    program = tmp_path / "program.py"
    program.write_text("import sys; print(sys.path[0], sys.argv[1:])\n")
    hook = Path(report.__file__).with_name("step_hook.py")
    for named in (("-m", "program"), (str(program),)):
        command = [sys.executable, hook, tmp_path / "log.jsonl", *named, "3"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == f"{tmp_path} ['3']\n"


def test_a_fleet_whose_nodes_fail_finishes_all_runs(
    character: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("time", "EVERY"):
        monkeypatch.setattr(relay, name, getattr(relay, name))
    options = argparse.Namespace(runs=8, nodes=3, days_to_failure=0.03, seed=1)
    figures = fleet.simulate(options, home)
    assert figures["runs finished"] == "8 of 8"
    assert int(figures["nodes lost with a run on them"]) > 1
    assert int(figures["steps computed again"].split()[0]) > 0
    files = sum(path.suffix in (".png", ".txt") for path in character.iterdir())
    assert figures["files of datasets sent"] == f"{3 * files} (if each run brought its own: {8 * files})"


@pytest.mark.slow
@pytest.mark.parametrize("program", [("benchmarks.quality",), ("scripts.pretrain_micro", "--work", "work")], ids=str)
def test_a_long_program_in_small(tmp_path: Path, program: tuple[str, ...]) -> None:
    environment = unmeasured() | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *program, "--smoke"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
