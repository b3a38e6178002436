"""The self-test passes on this machine, and fails where something is wrong."""

import json
from pathlib import Path

import pytest

from tests.integration.runs.test_processes import limner
from trainer import selftest
from trainer.selftest import Case


@pytest.mark.nightly
def test_the_self_test_passes_on_this_cpu(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "cases", lambda: [Case("cpu", "fp32")])
    report = home / "selftest.json"
    done = limner("selftest", "--out", report)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    (case,) = json.loads(report.read_text(encoding="utf-8"))["cases"]
    assert (case["failures"], case["name"], case["plan"]) == ([], "CPU", "1 x off")
    assert case["deviation"] < 0.001
    assert str(home) not in report.read_text(encoding="utf-8")
    assert list(home.glob("outputs/*")) == []  # it has a home of its own


def test_other_losses_are_noticed() -> None:
    reference = json.loads(selftest.LOSSES.read_text(encoding="utf-8"))
    assert (len(reference), selftest.deviation(reference, reference)) == (selftest.STEPS, 0)
    assert selftest.deviation([*reference[:-1], reference[-1] * 1.01], reference) == pytest.approx(0.01)
    assert selftest.deviation(reference[:-1], reference) == float("inf")
