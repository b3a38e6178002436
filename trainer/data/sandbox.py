"""Import uploads in a process of its own with limited memory and time, so that no file can harm the page.

The process reads the list of files from standard input. It prints the name of each image before decoding it and the
report at the end, as lines of JSON. Linux enforces the limits; elsewhere a thread here watches the process.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from trainer import confinement, foreign_text, processes
from trainer.data import dataset, uploads
from trainer.data.uploads import Report
from trainer.errors import UserError, explain_disk
from trainer.i18n import _

MEMORY = 2**30  # bytes beyond those that the program itself takes
SECONDS = 20  # of CPU time for one file
WATCHED_EVERY = 0.05  # seconds
_AT_ONCE = threading.BoundedSemaphore(2)  # of these processes, so that not every upload has all of `MEMORY` at once
KEEP_LOCATION = "--keep-location"


def add(
    folder: Path,
    sources: Sequence[tuple[str, Path]],
    look: Callable[[str], None] | None = None,
    *,
    keep_location: bool = False,
) -> Report:
    """Add uploads as `uploads.add` does, in a process of its own.

    Raises:
        UserError: the disk is full or broken.
        RuntimeError: the process ended before it decoded anything.
    """
    before = {path.name for path in dataset.image_files(folder)}
    request = [(file_name, str(path)) for file_name, path in sources]
    options = [KEEP_LOCATION] if keep_location else []
    answer, names = _import(folder, options, request, look)
    if answer:
        refused = [(file, reason) for file, reason in answer.pop("refused")]
        return Report(**answer, refused=refused)
    added = [path.name for path in dataset.image_files(folder) if path.name not in before]
    reason = _("takes too much memory or time; the files after it were skipped")
    return Report(added, refused=[(names[-1], reason)])


def _import(
    folder: Path, options: Sequence[str], request: Sequence[tuple[str, str]], look: Callable[[str], None] | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """Run this module in a process with limits, which writes to the dataset alone and has no network.

    Returns:
        Its report, None if the process ended without one; and the names that it announced.

    Raises:
        UserError: the disk is full or broken.
        RuntimeError: it ended before it announced anything.
    """
    answer = None
    names: list[str] = []
    command = confinement.command(["trainer.data.sandbox", str(folder), *options], [folder])
    with _AT_ONCE, processes.start(command, stdin=processes.PIPE, stdout=processes.PIPE) as process:
        assert process.stdin  # both are pipes
        assert process.stdout
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        if sys.platform != "linux":
            threading.Thread(target=_watch, args=(process, names), daemon=True).start()
        for line in process.stdout:
            message = foreign_text.parse_json(line)
            if isinstance(message, dict):
                answer = message
            else:
                names.append(message)
                if look:
                    look(message)
    if answer and "error" in answer:
        raise UserError(answer["error"], answer["remedy"])
    if answer is None and not names:
        raise RuntimeError(f"the upload process ended with {process.returncode}")
    return answer, names


def _watch(process: subprocess.Popen[str], names: list[str]) -> None:
    """End a process that takes more than `MEMORY`, or more than `SECONDS` for the latest of the names.

    What it takes before the first name is its own start, not a file's.
    """
    latest, start = 0, 0.0
    with suppress(psutil.NoSuchProcess):
        usage = psutil.Process(process.pid)
        while process.poll() is None:
            spent = sum(usage.cpu_times()[:2])
            if len(names) > latest:
                latest, start = len(names), spent
            if usage.memory_info().rss > MEMORY or (names and spent - start > SECONDS):
                process.kill()
            time.sleep(WATCHED_EVERY)


def main() -> None:
    """Import the files listed on standard input, within the limits."""
    sources = foreign_text.parse_json(sys.stdin.read(), most=foreign_text.MAX_OWN)
    _limit_memory()

    def look(name: str) -> None:
        _limit_time()
        print(json.dumps(name), flush=True)

    _limit_time()
    files, keep = [(name, Path(path)) for name, path in sources], KEEP_LOCATION in sys.argv[2:]
    try:
        answer = asdict(uploads.add(Path(sys.argv[1]), files, look, keep_location=keep))
    except (UserError, OSError) as error:
        if not (explained := error if isinstance(error, UserError) else explain_disk(error)):
            raise
        answer = {"error": explained.message, "remedy": explained.remedy}
    print(json.dumps(answer), flush=True)


def _limit_memory() -> None:
    """Limit this process to `MEMORY` more than it has now."""
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _limit_time() -> None:
    """Limit this process to `SECONDS` of CPU time from now on; the signal ends it, also inside a decoder."""
    if sys.platform == "linux":
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
