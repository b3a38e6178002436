"""The three speeds: what is left to a slower one is there, and so is what stands for it at a faster one."""

import re
from pathlib import Path

import pytest

from tests import speeds

ROWS = speeds.table()
TESTS = Path(speeds.__file__).parent
FILES = {path.relative_to(TESTS).as_posix(): path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}
RANK = {"quick": 0, "full": 1, "nightly": 2}


def speed_of(file: str, test: str) -> int:
    """The slowest speed that some cases of a test are left to; 0 if some cases of it are never left out."""
    rows = [row for row in ROWS if row.test in (file, f"{file}::{test}")]
    return min((0 if row.but else RANK[row.to] for row in rows), default=0)


@pytest.mark.parametrize("row", ROWS, ids=[row.test for row in ROWS])
def test_what_is_left_out_is_there_and_covered_at_a_faster_speed(row: speeds.Left) -> None:
    file, _, test = row.test.partition("::")
    assert file in FILES
    assert not test or f"def {test}(" in FILES[file]
    assert row.to in ("full", "nightly")
    places = [name for name, text in FILES.items() if re.search(rf"^def {row.by}\(", text, re.MULTILINE)]
    assert places, f"{row.by} is not there"
    assert any(speed_of(place, row.by) < RANK[row.to] for place in places), f"{row.by} does not run before"


def test_each_speed_runs_more_than_the_one_before() -> None:
    rows = [
        speeds.Left("a/test_x.py", "full", "y"), speeds.Left("a/test_y.py::test_z", "nightly", "y", ("one", "two-b")),
    ]  # fmt: skip

    def ran(test: str, seed: str = "0") -> list[str]:
        return [speed for speed in RANK if speeds.runs_at(test, speed, rows, seed)]

    assert ran("a/test_w.py::test_z") == ["quick", "full", "nightly"]
    assert ran("a/test_x.py::test_z[3]") == ["full", "nightly"]
    assert ran("a/test_y.py::test_z[two-b]") == ["quick", "full", "nightly"]
    assert ran("nightly/test_long.py::test_kills") == ["nightly"]
    others = ("a/test_w.py::test_z", "a/test_x.py::test_z", "a/test_y.py::test_z[one]")
    assert not any(speeds.repeats_others(test, rows) for test in others)
    assert speeds.repeats_others("a/test_y.py::test_z[three]", rows)
    drawn = {tuple(ran("a/test_y.py::test_z[three]", str(seed))) for seed in range(80)}
    assert drawn == {("nightly",), ("full", "nightly")}, "by turns"


def test_a_commit_draws_about_a_sixteenth_of_the_nights_tests() -> None:
    cases = [f"test[{number}]" for number in range(1000)]
    first, second = ({case for case in cases if speeds.is_drawn(seed, case)} for seed in ("abc", "def"))
    assert 35 < len(first) < 95
    assert first != second
