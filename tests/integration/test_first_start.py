"""The first and second start of a fresh clone, as README.md has them, with the packages that PyPI has today."""

import os
import re
import signal
import subprocess
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT


def start(limner: Path) -> None:
    """Start the page, open the address that it prints, and end it."""
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    command = [str(limner / "start.sh"), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", env=environment
    ) as process:
        assert process.stdout
        output = ""
        for line in process.stdout:
            output += line
            if address := re.search(r"Limner is running at (\S+)", line):
                browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
                with browser.open(address[1]) as answer:
                    assert b"Limner" in answer.read()
                process.send_signal(signal.SIGTERM)
                return
    pytest.fail(output)


@pytest.mark.slow
@pytest.mark.skipif("CI" not in os.environ, reason="downloads all packages")
def test_a_fresh_clone_starts_twice(tmp_path: Path) -> None:
    limner = tmp_path / "Fresh clöne" / "limner"
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(limner)], check=True)
    start(limner)
    start(limner)
