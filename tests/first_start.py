"""The first and second start of a fresh clone, as README.md has them: `python3 tests/first_start.py`.

Real packages come from the network, so it is a step of CI, not a test. It prints the seconds of each start until
its page answers, and fails if that never comes. The clone lies in a folder with a space and an umlaut in its name.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def start(limner: Path) -> float:
    """Start the page, open the address that it prints, and end it; return the seconds until it answered.

    Raises:
        RuntimeError: it ended without an address, or the page is not Limner's.
    """
    begun = time.monotonic()
    command = [str(limner / "start.sh"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8") as process:
        try:
            assert process.stdout
            for line in process.stdout:
                print(line, end="", flush=True)
                if address := re.search(r"Limner is running at (\S+)", line):
                    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
                    with browser.open(address[1]) as answer:
                        if b"Limner" not in answer.read():
                            raise RuntimeError("this is another page")
                    return time.monotonic() - begun
            raise RuntimeError("it ended without an address")
        finally:
            process.send_signal(signal.SIGTERM)


def main() -> None:
    """Clone, and start twice."""
    with tempfile.TemporaryDirectory() as folder:
        limner = Path(folder) / "Fresh clöne" / "limner"
        subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(limner)], check=True)
        first, second = start(limner), start(limner)
    print(f"The page answered after {first:.0f} s, and after {second:.1f} s at the second start.")


if __name__ == "__main__":
    os.environ.pop("VIRTUAL_ENV", None)
    sys.exit(main())
