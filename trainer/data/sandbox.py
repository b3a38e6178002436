"""Uploads taken in by a process of its own with little memory and time: whatever a file does to it, the page goes on.

The process reads the list of files from its standard input and tells in lines which picture it looks at, and at the end
what became of all.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from trainer import paths
from trainer.data import dataset, uploads
from trainer.data.uploads import Report
from trainer.i18n import say

MEMORY = 2**30  # bytes beyond what the program itself takes
SECONDS = 20  # of computing on one file


def add(folder: Path, sources: Sequence[tuple[str, Path]], look: Callable[[str], None] | None = None) -> Report:
    """As `uploads.add`, in a process of its own.

    Raises:
        RuntimeError: it ended before it looked at anything.
    """
    before = {path.name for path in dataset.pictures(folder)}
    report, name = None, ""
    with subprocess.Popen(  # an argument list, no shell
        [sys.executable, "-m", "trainer.data.sandbox", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=paths.CODE, text=True, encoding="utf-8",
    ) as process:  # fmt: skip
        assert process.stdin  # both are pipes
        assert process.stdout
        process.stdin.write(json.dumps([(told, str(path)) for told, path in sources]))
        process.stdin.close()
        for line in process.stdout:
            told = json.loads(line)
            if isinstance(told, dict):
                report = Report(**{**told, "refused": [(file, reason) for file, reason in told["refused"]]})
            else:
                name = told
                if look:
                    look(name)
    if report is None and not name:
        raise RuntimeError(f"the intake ended with {process.returncode}")
    if report is None:
        added = [path.name for path in dataset.pictures(folder) if path.name not in before]
        told = say("it takes too much memory or time; what came after it was left out")
        report = Report(added, refused=[(name, told)])
    return report


def main() -> None:
    """Take in what is listed on standard input."""
    sources = [(name, Path(path)) for name, path in json.load(sys.stdin)]
    _limit_memory()

    def look(name: str) -> None:
        _limit_time()
        print(json.dumps(name), flush=True)

    _limit_time()
    print(json.dumps(asdict(uploads.add(Path(sys.argv[1]), sources, look))), flush=True)


def _limit_memory() -> None:
    """Let this process have `MEMORY` more than it has now, where the system can tell and hold it to that."""
    try:
        import resource
    except ImportError:
        return
    if sys.platform != "linux":
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _limit_time() -> None:
    """Let this process compute for `SECONDS` from now on; the signal ends it, also inside a decoder."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, SECONDS)


if __name__ == "__main__":
    main()
