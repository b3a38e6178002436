"""Import uploads in a process of its own with limited memory and time, so that no file can harm the page.

The process reads the list of files from standard input. It prints the name of each image before decoding it and the
report at the end, as lines of JSON.
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
from trainer.i18n import _

MEMORY = 2**30  # bytes beyond those that the program itself takes
SECONDS = 20  # of CPU time for one file


def add(folder: Path, sources: Sequence[tuple[str, Path]], look: Callable[[str], None] | None = None) -> Report:
    """Add uploads as `uploads.add` does, in a process of its own.

    Raises:
        RuntimeError: the process ended before it decoded anything.
    """
    before = {path.name for path in dataset.image_files(folder)}
    report, name = None, ""
    with subprocess.Popen(  # an argument list, no shell
        [sys.executable, "-m", "trainer.data.sandbox", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=paths.CODE,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdin  # both are pipes
        assert process.stdout
        process.stdin.write(json.dumps([(file_name, str(path)) for file_name, path in sources]))
        process.stdin.close()
        for line in process.stdout:
            message = json.loads(line)
            if isinstance(message, dict):
                message["refused"] = [(file, reason) for file, reason in message["refused"]]
                report = Report(**message)
            else:
                name = message
                if look:
                    look(name)
    if report is None and not name:
        raise RuntimeError(f"the upload process ended with {process.returncode}")
    if report is None:
        added = [path.name for path in dataset.image_files(folder) if path.name not in before]
        reason = _("takes too much memory or time; the files after it were skipped")
        report = Report(added, refused=[(name, reason)])
    return report


def main() -> None:
    """Import the files listed on standard input."""
    sources = [(name, Path(path)) for name, path in json.load(sys.stdin)]
    _limit_memory()

    def look(name: str) -> None:
        _limit_time()
        print(json.dumps(name), flush=True)

    _limit_time()
    print(json.dumps(asdict(uploads.add(Path(sys.argv[1]), sources, look))), flush=True)


def _limit_memory() -> None:
    """Limit this process to `MEMORY` more than it has now, where the system supports that."""
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
    """Limit this process to `SECONDS` of CPU time from now on; the signal ends it, also inside a decoder."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, SECONDS)


if __name__ == "__main__":
    main()
