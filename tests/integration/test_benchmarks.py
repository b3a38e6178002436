"""Benchmarks: arithmetic against figures by hand, recipes that are valid settings, and a small run of one."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import report
from tests.conftest import CHARACTER, CHECKOUT, unmeasured


def picture(**values: object) -> dict[str, object]:
    row: dict[str, object] = {"subject": "miraxo", "recipe": "ours", "rate": "1", "seed": "0", "step": 4}
    row |= {"exposures": 32, "seconds": 2.0, "prompts": "called", "number": 0, "noise": 0, "seen": 1}
    return row | {"adherence": 1.0, "likeness": 0.5, "copy": 0.0, "diversity": 1.0} | values


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


@pytest.mark.nightly
@pytest.mark.parametrize("program", [("benchmarks.quality",), ("scripts.pretrain_micro", "--work", "work")], ids=str)
def test_a_long_program_in_small(tmp_path: Path, program: tuple[str, ...]) -> None:
    environment = unmeasured() | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *program, "--smoke"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NOTEBOOK = CHECKOUT / "docs" / "rented-gpu.ipynb"
# The package is installed; the installer and the self-test have tests of their own.
LEFT_OUT = ("!python limner/scripts/install.py", "!limner selftest")


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def as_python(cell: str) -> str:
    """Turn lines for the shell into calls of `shell`, as Jupyter does."""
    lines = [line for line in cell.splitlines() if not line.strip().startswith(LEFT_OUT)]
    return "\n".join(re.sub(r"^(\s*)!(.*)$", lambda match: f"{match[1]}shell({match[2]!r})", line) for line in lines)


@pytest.mark.nightly
def test_the_cells_train_try_out_and_leave_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path))
    shutil.copytree(CHARACTER, tmp_path / "images", ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setenv("PATH", os.environ["PATH"])  # which a cell changes
    names: dict[str, object] = {}

    def shell(line: str) -> None:
        command = shlex.split(line.format(**{name: value for name, value in names.items() if name.isupper()}))
        assert command[0] == "limner"
        done = subprocess.run([sys.executable, "-m", "trainer", *command[1:]], capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)

    names["shell"] = shell
    previews: list[object] = []
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=previews.append))
    for cell in cells():
        code = as_python(cell).replace('BASE = "stabilityai/stable-diffusion-xl-base-1.0"', 'BASE = "micro"')
        code = code.replace("[model]\n", "training.steps = 4\n[model]\n")
        exec(compile(code, str(NOTEBOOK), "exec"), names)  # noqa: S102 - the notebook is ours
    assert os.environ["PATH"].split(os.pathsep)[0] == str(tmp_path / "limner" / ".venv" / "bin"), "where `!limner` is"
    assert (tmp_path / "run" / "mira.safetensors").is_file()
    assert previews
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


CODE = """
from trainer import fault_injection
fault_injection.on_write()
fault_injection.on_sync()
fault_injection.crash_point()
fault_injection.on_advance(1)
print(fault_injection.loss_factor(1))
"""


def one_step(fault: str, **switch: str) -> str:
    """What a process prints that makes one durable write and one step; "" if it did not get that far."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("LIMNER_TEST", "LIMNER_FAULT")}
    environment = {**inherited, "LIMNER_FAULT": fault, **switch}
    return subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment).stdout


def test_a_fault_strikes_where_tests_ask_for_it_and_nowhere_else() -> None:
    for fault in ("nan@1", "oom@1", "full@1", "enospc@1", "eio@1", "kill@1"):
        assert one_step(fault, LIMNER_TEST="1") == ("nan\n" if fault == "nan@1" else "")
    every = "nan@1,oom@1,full@1,hang@1,enospc@1,eio@1,kill@1"
    for switch in ({}, {"LIMNER_TEST": ""}, {"LIMNER_TEST": "0"}, {"LIMNER_TEST": "true"}):
        assert one_step(every, **switch) == "1.0\n"
