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


def python(disk: Path, code: str, *arguments: str | Path, reads: str = "utf-8", **variables: str) -> str:
    """Run a program on the emulated Windows; return what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = windows.environment(disk, home(disk)) | variables
    done = subprocess.run(command, env=environment, capture_output=True, encoding=reads, timeout=120)
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


# Files that are open --------------------------------------------------------------------------------------------

HELD = """
import sys, threading, time
from pathlib import Path
from trainer import storage
folder = Path(sys.argv[1])
storage.IN_USE = 2.0

def held(path, seconds):
    file = path.open("rb")
    threading.Timer(seconds, file.close).start()
    return file

def attempt(work, *arguments):
    try:
        work(*arguments)
    except OSError as error:
        return type(error).__name__
    return "done"

settings, checkpoint = folder / "config.toml", folder / "000005"
storage.write(settings, "old")
storage.write_folder(checkpoint, lambda part: storage.write(part / "a", "x"))
held(settings, 0.3)
print(attempt(storage.write, settings, "new"), settings.read_bytes())
held(checkpoint / "a", 0.3)
print(attempt(storage.write_folder, checkpoint, lambda part: storage.write(part / "a", "y")))
held(checkpoint / "a", 0.3)
print(attempt(storage.remove_folder, checkpoint))
held(settings, 0.3)
print(attempt(storage.remove, settings))
storage.write(settings, "old")
for_ever = settings.open("rb")
begun = time.monotonic()
print(attempt(storage.write, settings, "new"), time.monotonic() - begun > 2, settings.read_bytes())
print(sorted(path.name for path in folder.iterdir()))
"""


def test_what_a_page_or_scanner_has_open_is_written_when_it_has_closed_it(disk: Path) -> None:
    (disk / "run").mkdir()
    assert python(disk, HELD, disk / "run").splitlines() == [
        "done b'new'",
        "done",
        "done",
        "done",
        "PermissionError True b'old'",
        "['config.toml']",
    ]


DOWNLOADED = """
from trainer import runs, storage
from trainer.errors import UserError
from trainer.runs import Run, archive
from trainer import paths
storage.IN_USE = 0.1
run = Run(paths.outputs() / "2026-01-01_120000_rin")
run.folder.mkdir()
storage.write(run.config_file, "")
with run.config_file.open("rb"):
    for work in (lambda: archive.rename(run, "better"), lambda: archive.delete(run)):
        try:
            work()
        except UserError as error:
            print(error.message)
print(archive.rename(run, "better").id)
"""


def test_a_run_that_is_being_downloaded_is_not_moved_and_it_is_said(disk: Path) -> None:
    sentence = "The files of this run are in use, or may not be changed."
    assert python(disk, DOWNLOADED).splitlines() == [sentence, sentence, "2026-01-01_120000_better"]
