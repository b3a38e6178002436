"""Benchmarks: arithmetic against figures by hand, recipes that are valid settings, and a small run of one."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from tests.conftest import CHECKOUT, unmeasured


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
