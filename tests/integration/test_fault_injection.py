"""The switch for faults on purpose: what strikes in a test strikes nobody else, whatever is in their environment."""

import os
import subprocess
import sys

import pytest

CODE = """
from trainer import fault_injection
fault_injection.on_write()
fault_injection.on_sync()
fault_injection.crash_point()
fault_injection.on_advance(1)
print(fault_injection.loss_factor(1))
"""
FAULTS = ("nan@1", "oom@1", "full@1", "hang@1", "enospc@1", "eio@1", "kill@1")
ON = {"LIMNER_TEST": "1"}


def one_step(fault: str, **switch: str) -> str:
    """What a process prints that makes one durable write and one step; "" if it did not get that far."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("LIMNER_TEST", "LIMNER_FAULT")}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**inherited, "LIMNER_FAULT": fault, **switch},
    )  # fmt: skip
    try:
        return process.communicate(timeout=2 if fault == "hang@1" and switch == ON else 60)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return ""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_strikes_where_tests_ask_for_it(fault: str) -> None:
    assert one_step(fault, **ON) == ("nan\n" if fault == "nan@1" else "")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("switch", [{}, {"LIMNER_TEST": ""}, {"LIMNER_TEST": "0"}, {"LIMNER_TEST": "true"}], ids=repr)
def test_without_the_switch_no_fault_strikes(fault: str, switch: dict[str, str]) -> None:
    assert one_step(fault, **switch) == "1.0\n"
