"""The C library keeps memory when told to, and gives it back when told to: seen in a process of its own."""

import json
import platform
import subprocess
import sys

import pytest

CODE = """
import json, resource, sys
import numpy, psutil
from trainer.training import malloc
said = malloc.tune() if sys.argv[1] == "tuned" else False
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(5):
        numpy.ones(64 * 2**20, dtype=numpy.uint8)
work()
before = faults()
work()
paged, process = faults() - before, psutil.Process()
held = process.memory_info().rss
malloc.trim()
print(json.dumps([said, paged, (held - process.memory_info().rss) / 2**20]))
"""


def run(mode: str) -> tuple[bool, int, float]:
    done = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True)
    said, paged, given_back = json.loads(done.stdout)
    return said, paged, given_back


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
def test_memory_is_kept_for_the_next_time_and_given_back_on_request() -> None:
    usual, tuned = run("plain"), run("tuned")
    assert tuned[0]
    assert tuned[1] < usual[1] / 10, "pages that the kernel had to make anew"
    assert tuned[2] > 32, "MB that were given back"
