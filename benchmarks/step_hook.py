"""Run any training program and log the time and memory of each of its optimizer steps.

    python step_hook.py LOG.jsonl SCRIPT.py|-m MODULE [arguments]

It needs only torch and psutil, so that it runs in the environment of another trainer. A public hook of torch reports
each optimizer step; the program itself is not changed.
"""

import json
import os
import resource
import runpy
import sys
import threading
import time

import psutil
from torch.optim.optimizer import register_optimizer_step_post_hook

STARTED = time.monotonic()


def main() -> None:
    """Watch the program named on the command line."""
    log, *rest = sys.argv[1:]
    process, peaks, done = psutil.Process(), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            memory = process.memory_info()
            peaks[0] = max(peaks[0], memory.rss)
            peaks[1] = max(peaks[1], memory.rss - memory.shared)

    def after(*_: object) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        record = {
            "wall": time.monotonic() - STARTED, "cpu": used.ru_utime + used.ru_stime, "peak": peaks[0],
            "own": peaks[1], "load": os.getloadavg()[0],
        }  # fmt: skip
        with open(log, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        peaks[:] = 0, 0

    threading.Thread(target=watch, daemon=True).start()
    register_optimizer_step_post_hook(after)
    # In place of the folder of this file, whose modules may have the names of packages.
    sys.path[0] = os.getcwd() if rest[0] == "-m" else os.path.dirname(os.path.abspath(rest[0]))
    if rest[0] == "-m":
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    main()
