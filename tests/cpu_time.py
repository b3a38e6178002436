"""CPU seconds of each test, of this process and all that it started, summed by group; a pytest plugin.

Each group has a budget at each speed, and CI fails where a group takes half as much again. Elsewhere that is only said.
A budget grows by as much as the machine is slower than the usual one (`pace`), which is measured while the tests run.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator

import psutil
import pytest

from tests import pace
from tests.speeds import speed

PROPERTY = "cpu_seconds"
SLOWNESS = "slowness"
SAMPLED = 10.0  # CPU seconds after which it is measured again
SLOWEST = 20
EXCESS = 1.5  # times its budget that a group may take
BUDGETS = {
    "quick": {"unit": 55, "integration": 390, "hostile": 25, "e2e": 60},
    "full": {"unit": 100, "integration": 1600, "hostile": 100, "e2e": 1000},
}


def spent() -> float:
    """Return the CPU seconds of this process, of those it started, and of those that have ended."""
    total = sum(os.times()[:4])
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to count where the first test begins."""
    session.stash[_BEFORE] = session.stash[_MEASURED] = spent()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Hand what a test took to the process that sums it up, which may be another one."""
    report = yield
    if call.when == "teardown":
        # What processes took that nobody waited for is lost when they end, mostly with the last test of a session.
        total = spent()
        report.user_properties.append((PROPERTY, max(0.0, total - item.session.stash[_BEFORE])))
        item.session.stash[_BEFORE] = total
        if total - item.session.stash[_MEASURED] > SAMPLED:
            report.user_properties.append((SLOWNESS, pace.slowness()))
            item.session.stash[_MEASURED] = total
    return report


_BEFORE, _MEASURED = pytest.StashKey[float](), pytest.StashKey[float]()


class Summary:
    """What all tests took, by group and by test."""

    def __init__(self, config: pytest.Config) -> None:
        self.fails = speed(config) == "full"
        self.budgets = BUDGETS.get(speed(config), {}) if config.args == config.getini("testpaths") else {}
        self.tests: dict[str, float] = {}
        self.slowness: list[float] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of one test."""
        if report.when == "teardown":
            properties = dict(report.user_properties)
            self.tests[report.nodeid] = properties.get(PROPERTY, 0.0)
            if SLOWNESS in properties:
                self.slowness.append(properties[SLOWNESS])

    def groups(self) -> dict[str, float]:
        """Return CPU seconds by group, which is the folder under `tests`."""
        found: dict[str, float] = defaultdict(float)
        for test, seconds in self.tests.items():
            parts = test.split("/")
            found[parts[1] if len(parts) > 2 else "tests"] += seconds
        return dict(found)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the groups and the slowest tests."""
        terminalreporter.section("CPU seconds")
        terminalreporter.write_line(f"a core takes {self.factor():.2f} times as long as the usual one")
        for group, seconds in sorted(self.groups().items()):
            budget = self.budgets.get(group)
            terminalreporter.write_line(f"{seconds:8.1f}  {group}" + (f", of {budget}" if budget else ""))
        for group in self.exceeded():
            words = f"{group} takes more than {EXCESS:g} times its budget, on a machine as slow as this"
            terminalreporter.write_line(words, red=True)
        terminalreporter.write_line("the slowest:")
        slowest = sorted(self.tests.items(), key=lambda pair: -pair[1])[:SLOWEST]
        for test, seconds in slowest:
            terminalreporter.write_line(f"{seconds:8.1f}  {test}")

    def factor(self) -> float:
        """Return how many times as long a core took as the usual one, for most of the time."""
        return statistics.median(self.slowness or [1.0])

    def exceeded(self) -> list[str]:
        """Return the groups that take more than their budget and half of it."""
        spent_by, share = self.groups(), EXCESS * self.factor()
        return [group for group, budget in self.budgets.items() if spent_by.get(group, 0.0) > share * budget]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a whole run of CI that takes too long, whatever its tests say."""
        if self.fails and self.exceeded() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    """Sum up in the process that reports, which with several workers is none of them."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Summary(config), "limner-cpu-seconds")
