"""What takes long and is run before a release: kills, soaks, ten thousand images, each by a bench of its own."""

import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize(
    "command",
    [
        ("benchmarks.crash", "--kills", "300"),
        ("benchmarks.soak", "--steps", "2000", "--pictures", "200"),
        ("benchmarks.many", "--pictures", "10000"),
    ],
    ids=["three hundred kills", "a soak", "ten thousand images"],
)
def test_a_bench_finds_nothing_wrong(command: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=CHECKOUT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:]
