"""The switch for faults on purpose: what strikes in a test strikes nobody else, whatever is in their environment."""

import os
import subprocess
import sys

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
