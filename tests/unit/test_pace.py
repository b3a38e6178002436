"""The limits of tests, which are those of the machine they run on."""

import pytest

from tests import pace
from tests.cpu_time import Summary


def test_what_takes_too_long_fails() -> None:
    with pytest.raises(AssertionError, match="are expected of this machine"), pace.at_most(0.0):
        pass
    with pace.at_most(60.0):
        pass


def test_a_budget_grows_with_the_slowness_of_the_machine(pytestconfig: pytest.Config) -> None:
    summary = Summary(pytestconfig)
    summary.budgets, summary.tests = {"unit": 100}, {"tests/unit/test_x.py::test_y": 200.0}
    assert summary.exceeded() == ["unit"]
    summary.slowness = [1.0, 1.5, 1.5]
    assert summary.exceeded() == []
