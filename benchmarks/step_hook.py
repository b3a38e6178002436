"""Runs a training program of anybody's, and writes down what each of its optimizer steps took.

    python step_hook.py LOG.jsonl SCRIPT.py|-m MODULE [arguments]

It needs torch and psutil alone, so that it runs in a peer's own environment. Torch tells it of each optimizer step
through a public hook; the program itself is not touched.
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

BEGUN = time.monotonic()


def main() -> None:
    """Watch the program named on the command line."""
    log, *rest = sys.argv[1:]
    process, highest, done = psutil.Process(), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            taken = process.memory_info()
            highest[0] = max(highest[0], taken.rss)
            highest[1] = max(highest[1], taken.rss - taken.shared)

    def after(*_: object) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        fact = {
            "wall": time.monotonic() - BEGUN, "cpu": used.ru_utime + used.ru_stime, "peak": highest[0],
            "own": highest[1], "load": os.getloadavg()[0],
        }  # fmt: skip
        with open(log, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(fact) + "\n")
        highest[:] = 0, 0

    threading.Thread(target=watch, daemon=True).start()
    register_optimizer_step_post_hook(after)
    if rest[0] == "-m":
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        sys.path.insert(0, os.path.dirname(os.path.abspath(rest[0])))
        runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    main()
