"""Limner on an emulated Windows: what a person does with the page, and what went wrong there."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import windows


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The disk of an emulated Windows, with the home of a user whose name is in no Western code page."""
    folder = tmp_path / "disk"
    (folder / "Users" / "José Łukasz" / "datasets").mkdir(parents=True)
    (folder / "Users" / "José Łukasz" / "outputs").mkdir()
    return folder


def home(disk: Path) -> Path:
    return disk / "Users" / "José Łukasz"


def python(disk: Path, code: str, *arguments: str | Path, **variables: str) -> str:
    """Run a program on the emulated Windows; return what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = windows.environment(disk, home(disk)) | variables
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


MISSING = """
import subprocess, sys
from pathlib import Path
namespace = {"__file__": f"{sys.argv[1]}/trainer/example.py", "__name__": "trainer.example"}
def run(code):
    try:
        exec(code, namespace)
    except Exception as error:
        return type(error).__name__
print(*map(run, sys.argv[2:]))
"""


def test_the_emulation_takes_away_what_windows_lacks(disk: Path) -> None:
    codes = {
        "import os, signal, socket, sys, subprocess": "None",
        "import resource": "ModuleNotFoundError",
        "os.fork()": "AttributeError",
        "signal.SIGKILL": "AttributeError",
        "from socket import AF_UNIX": "ImportError",
        "subprocess.Popen(['true'], preexec_fn=print)": "ValueError",
        "assert (os.name, sys.platform) == ('nt', 'win32')": "None",
        "import multiprocessing; multiprocessing.get_context('fork')": "ValueError",
    }
    told = python(disk, MISSING, windows.CHECKOUT, *codes)
    assert told.split() == list(codes.values())


DISK = """
import os, sys
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "a").write_bytes(b"a")
(folder / "b").write_bytes(b"b")
def attempt(work, *arguments):
    try:
        work(*arguments)
    except OSError as error:
        return type(error).__name__
    return "None"
with (folder / "a").open("rb"):
    print(attempt((folder / "b").replace, folder / "a"), attempt((folder / "a").unlink))
    print(attempt(folder.rename, folder.with_name("other")))
print(attempt((folder / "b").rename, folder / "a"), attempt((folder / "aux.txt").touch))
print(attempt((folder / "A").open, "x"), attempt((folder / "c.").mkdir), attempt((folder / "b").rename, folder / "B"))
(folder / "text").open("w").write("café")
print((folder / "text").read_bytes(), sys.stdout.encoding)
"""


def test_the_emulation_protects_files_that_are_open(disk: Path) -> None:
    (disk / "x").mkdir()
    assert python(disk, DISK, disk / "x").splitlines() == [
        "PermissionError PermissionError",
        "PermissionError",
        "FileExistsError OSError",
        "FileExistsError OSError None",
        "b'caf\\xe9' cp1252",
    ]
    assert len(windows.violations(disk)) == 3
    assert python(disk, "import sys; print('ü', sys.flags.utf8_mode)", PYTHONUTF8="1") == "ü 1"
