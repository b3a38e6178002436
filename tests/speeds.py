"""Three speeds of one suite: `pytest` in minutes, `pytest --full` as in CI, `pytest --nightly` with all there is.

A test runs at every speed unless `speeds.toml` leaves it to a slower one, with the test that stands for it meanwhile.
What is left to the night is products and long ways through the page, of which CI runs a sixteenth that follows from the
commit; and what takes longest, under `tests/nightly`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tomllib
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import coverage
import psutil
import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
LONG = "nightly/"  # the folder of what only the night runs
FUZZED = {"quick": "1", "full": "5", "nightly": "120"}  # seconds of each reader
PARTS = 16  # of the night's tests; CI runs one
MEASURED = "COVERAGE_PROCESS"  # begins the variables by which a process measures its coverage
TOGETHER = "e2e/"  # tests of one of its files share a server, and so a process


@dataclass(frozen=True)
class Left:
    """A test, or all of a file, that is left to a slower speed, but for some of its cases; another one covers it."""

    test: str
    to: str
    by: str
    but: tuple[str, ...] = ()


@cache
def table() -> list[Left]:
    """Return what is left to slower speeds."""
    rows = tomllib.loads(Path(__file__).with_name("speeds.toml").read_text(encoding="utf-8"))["left"]
    return [Left(row["test"], row["to"], row["by"], tuple(row.get("but", ()))) for row in rows]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two slower speeds."""
    group = parser.getgroup("speeds")
    group.addoption("--full", action="store_true", help="also what is left to CI, and a sixteenth of the night's tests")
    group.addoption("--nightly", action="store_true", help="all there is: products, kills, fuzzing, soaks")


def speed(config: pytest.Config) -> str:
    """Return the chosen speed."""
    return "nightly" if config.getoption("nightly") else "full" if config.getoption("full") else "quick"


def commit() -> str:
    """Return the commit that is tested; "none" outside a repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True)
    return done.stdout.strip() or "none"


def is_drawn(seed: str, test: str) -> bool:
    """Tell whether one of the night's tests is among those that a commit runs; each is in about every sixteenth."""
    return hashlib.sha256(f"{seed} {test}".encode()).digest()[0] % PARTS == 0


def runs_at(test: str, chosen: str, rows: list[Left], seed: str) -> bool:
    """Tell whether a test, named without its first folder, runs at a speed."""
    if chosen == "nightly":
        return True
    if test.startswith(LONG):
        return False
    row = row_of(test, rows)
    if row is None:
        return True
    return chosen == "full" and (row.to == "full" or is_drawn(seed, test))


def row_of(test: str, rows: list[Left]) -> Left | None:
    """Return the row that leaves a test to a slower speed, if there is one."""
    name, _, case = test.partition("[")
    return next((row for row in rows if row.test in (name, name.partition("::")[0]) and case[:-1] not in row.but), None)


def repeats_others(test: str, rows: list[Left]) -> bool:
    """Tell whether a test is the night's, or does with other values what others do at a faster speed."""
    row = row_of(test, rows)
    return row is not None and (row.to == "nightly" or bool(row.but))


def examples(count: int) -> int:
    """Return how many examples a property is tried on: at the quick speed a fifth."""
    return max(10, count // 5) if os.environ.get("LIMNER_TEST_SPEED") == "quick" else count


def repeats(*, full: int, nightly: int) -> int:
    """Return how often to do again what is never quite the same, such as killing a worker at a random moment."""
    return nightly if os.environ.get("LIMNER_TEST_SPEED") == "nightly" else full


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Let one process more than there are cores test, as some tests wait; not in CI, where most use a browser."""
    return (psutil.cpu_count() or 1) + (speed(config) == "quick")


def pytest_configure(config: pytest.Config) -> None:
    """Give each fuzzed reader the seconds of a speed."""
    os.environ["LIMNER_TEST_SPEED"] = speed(config)
    os.environ.setdefault("LIMNER_FUZZ", FUZZED[speed(config)])


def pytest_report_header(config: pytest.Config) -> str:
    """Say how much runs, and what chose it."""
    part = f", with the sixteenth of the night's tests that {commit()[:12]} draws" if speed(config) == "full" else ""
    return f"speed: {speed(config)}{part}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for a slower speed; a test that is named on the command line runs at any."""
    for item in items:
        test = item.nodeid.removeprefix("tests/")
        if test.startswith(TOGETHER):
            item.add_marker(pytest.mark.xdist_group(test.partition("::")[0]))
    if any("::" in argument for argument in config.args):
        return
    chosen, rows = speed(config), table()
    if config.args == config.getini("testpaths"):
        tests = {item.nodeid.removeprefix("tests/") for item in items}
        stale = [f"{row.test}[{case}]" for row in rows for case in row.but if f"{row.test}[{case}]" not in tests]
        if stale:
            raise pytest.UsageError(f"speeds.toml keeps cases that are not there: {', '.join(stale)}")
    seed = commit() if chosen == "full" else ""
    left: list[Any] = [item for item in items if not runs_at(item.nodeid.removeprefix("tests/"), chosen, rows, seed)]
    if left:
        gone = {id(item) for item in left}
        items[:] = [item for item in items if id(item) not in gone]
        config.hook.pytest_deselected(items=left)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure no coverage where that would take time and show nothing new."""
    measuring = coverage.Coverage.current()
    if measuring is None or not repeats_others(item.nodeid.removeprefix("tests/"), table()):
        return (yield)
    for_processes = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(MEASURED)}
    measuring.stop()
    try:
        return (yield)
    finally:
        measuring.start()
        os.environ.update(for_processes)
