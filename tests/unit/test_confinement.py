"""What is said where a system lacks what confines a process."""

import platform
import sys

import pytest

from trainer import confinement


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_landlock_version", "_has_seccomp"):
        monkeypatch.setattr(confinement, name, getattr(confinement, name).__wrapped__)


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_another_system_confines_nothing(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert confinement.caution() == (
        "This system has no means to keep a model from writing to your files and from reaching the network. "
        "Use models of makers that you trust."
    )


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has Landlock and seccomp")
def test_a_processor_whose_calls_are_unknown_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    before = confinement.caution()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "seccomp" in confinement.caution() or before
