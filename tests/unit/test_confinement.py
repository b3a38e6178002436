"""What is said where a system lacks what confines a process."""

import platform
import sys
from collections.abc import Iterator

import pytest

from trainer import confinement


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Look at the system again, and once more after the test."""
    for function in (confinement._landlock_version, confinement._has_seccomp):
        function.cache_clear()
    yield
    for function in (confinement._landlock_version, confinement._has_seccomp):
        function.cache_clear()


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
    confinement._has_seccomp.cache_clear()
    assert "seccomp" in confinement.caution() or before
