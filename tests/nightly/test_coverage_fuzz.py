"""Each reader is fuzzed for a while by atheris, guided by the code that it reaches; left out where atheris is not."""

import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT

pytestmark = pytest.mark.nightly

SECONDS = "120"  # for each reader
READERS = (
    *("pictures", "captions", "zips", "adapters", "settings", "events"),
    *("peft_settings", "settings_in_pictures", "recipes"),
)


@pytest.mark.parametrize("reader", READERS)
def test_no_input_that_reaches_new_code_breaks_a_reader(reader: str) -> None:
    pytest.importorskip("atheris", reason="pip install atheris, which has wheels for Linux and macOS")
    command = [sys.executable, "-m", "tests.hostile.coverage_fuzz", f"test_{reader}", SECONDS]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done" in done.stderr
