"""Run the page, a worker and the sampler for a long time: does their memory or the number of open files grow?

    python -m benchmarks.soak [--steps 2000] [--pictures 500]

Starts the page on a folder of its own, trains on the built-in base model while polling the page each second as a
browser does, then generates images in the Try-out tab, each with another seed. Prints for each process its memory and
open files by fifths of the time, and how much the memory grew after the first fifth.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.e2e.conftest import Server, make_home
from tests.e2e.test_network import Page


@dataclass
class Sizes:
    """Memory in MB and open files of each process over time, by its name."""

    memory: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    files: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def measure(self, server: Server, *, sampling: bool) -> None:
        """Add the current sizes."""
        assert server.process is not None
        page = psutil.Process(server.process.pid)
        for process in (page, *page.children()):
            arguments = process.cmdline()
            if process == page:
                name = "page, trying out" if sampling else "page, training"
            elif "sampler" in arguments and sampling:
                name = "sampler"
            elif "work" in arguments and not sampling:
                name = "worker"
            else:
                continue
            self.memory[name].append(process.memory_info().rss / 2**20)
            self.files[name].append(process.num_fds())

    def print(self) -> None:
        """Print the sizes over time."""
        for name, memory in self.memory.items():
            if len(memory) < 5:
                continue
            fifth = max(1, len(memory) // 5)
            parts = [statistics.median(memory[n * fifth : (n + 1) * fifth]) for n in range(5)]
            files = [statistics.median(self.files[name][n * fifth : (n + 1) * fifth]) for n in range(5)]
            growth = f"{parts[4] / parts[1] - 1:+.1%}"
            print(
                f"{name}: MB by fifths {', '.join(f'{part:.0f}' for part in parts)} ({growth} after the first); "
                f"open files {', '.join(f'{number:g}' for number in files)}",
                flush=True,
            )


def train(server: Server, page: Page, steps: int, sizes: Sizes) -> None:
    """Train from the page, and poll it each second as a browser does."""
    start, load = page.called_by("start", "click"), page.opened()
    # The view of a run polls without the queue; the other timer, of captions by a model, uses it.
    timers = [function for function in page.functions if any(target[1] == "tick" for target in function["targets"])]
    tick = next(function for function in timers if not function["queue"])
    page.call(load, [], "soak")
    values = page.values(
        start, project="example-character", name="rin", train_trigger="miraxo", preset="character",
        form_training_steps=steps, form_training_batch_size=1, form_preservation_share=0.0, form_preview_every=100,
        form_preview_prompts="miraxo",
    )  # fmt: skip
    answer = page.call(start, page.without_states(start, values), "soak")
    assert "is_generating" in answer, answer[-500:]
    folder = next(path.parent for path in (server.home / "outputs").glob("*/config.toml"))
    log = folder / "events.jsonl"
    while '"kind":"finished"' not in (text := log.read_text(encoding="utf-8") if log.exists() else ""):
        assert '"kind":"failed"' not in text, text[-500:]
        page.call(tick, page.without_states(tick, page.values(tick, run=folder.name)), "soak")  # the page stays open
        if '"kind":"step"' in text:
            sizes.measure(server, sampling=False)
        time.sleep(1)


def try_out(server: Server, page: Page, pictures: int, sizes: Sizes) -> None:
    """Generate images, each with another seed."""
    make = page.called_by("make", "click")
    page.call(page.opened(), [], "soak2")
    for seed in range(1, pictures + 1):
        values = page.values(make, prompt="miraxo, smiling", seed=seed, try_steps=10, adapter="", strength=1)
        answer = page.call(make, page.without_states(make, values), "soak2")
        assert "/media/picture/" in answer, answer[-500:]
        sizes.measure(server, sampling=True)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description="Measure memory and open files over a long time.")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(make_home(Path(folder)))
        sizes = Sizes()
        try:
            server.start(OMP_NUM_THREADS="1")
            with httpx.Client(base_url=server.url, timeout=120) as web:
                page = Page(web, web.get("/config").json())
                started = time.monotonic()
                train(server, page, options.steps, sizes)
                print(f"{options.steps} steps in {time.monotonic() - started:.0f} s", flush=True)
                started = time.monotonic()
                try_out(server, page, options.pictures, sizes)
                print(f"{options.pictures} pictures in {time.monotonic() - started:.0f} s", flush=True)
        finally:
            server.stop()
            server.end_workers()
            sizes.print()


if __name__ == "__main__":
    main()
