"""The page, a worker and the painter at work for long: does their memory, or the number of their open files, grow?

    python -m benchmarks.soak [--steps 2000] [--pictures 500]

Starts the page on a folder of its own, lets it train so many steps on the built-in base while a browser would look each
second, then makes so many pictures in the Try-out tab, each of another seed. Prints for each process its memory and
open files near the beginning, in the middle and at the end, and how much they grew after the first fifth.
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
    """Memory in MB and open files of each process by what it is, as they were one after the other."""

    memory: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    files: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def look(self, server: Server, *, painting: bool) -> None:
        """Add the sizes of now."""
        assert server.process is not None
        page = psutil.Process(server.process.pid)
        for process in (page, *page.children()):
            words = process.cmdline()
            name = "page" if process == page else "painter" if "paint" in words else "worker" if "work" in words else ""
            if name and (name == "page" or (name == "painter") == painting):
                name = f"page, {'trying out' if painting else 'training'}" if name == "page" else name
                self.memory[name].append(process.memory_info().rss / 2**20)
                self.files[name].append(process.num_fds())

    def tell(self) -> None:
        """Print what became of them."""
        for name, memory in self.memory.items():
            if len(memory) < 5:
                continue
            fifth = max(1, len(memory) // 5)
            parts = [statistics.median(memory[n * fifth : (n + 1) * fifth]) for n in range(5)]
            files = [statistics.median(self.files[name][n * fifth : (n + 1) * fifth]) for n in range(5)]
            grown = f"{parts[4] / parts[1] - 1:+.1%}"
            print(
                f"{name}: MB by fifths {', '.join(f'{one:.0f}' for one in parts)} ({grown} after the first); "
                f"open files {', '.join(f'{one:g}' for one in files)}",
                flush=True,
            )


def train(server: Server, page: Page, steps: int, sizes: Sizes) -> None:
    """Train from the page, and look at it each second as a browser does."""
    start, load = page.called_by("start", "click"), page.opened()
    # The view of a run looks at once each second; the other clock, of captions that a model writes, waits its turn.
    clocks = [one for one in page.functions if any(target[1] == "tick" for target in one["targets"])]
    tick = next(one for one in clocks if not one["queue"])
    page.call(load, [], "soak")
    given = page.values(
        start, project="example-character", name="rin", train_trigger="miraxo", preset="character",
        form_training_steps=steps, form_training_batch_size=1, form_preservation_share=0.0, form_preview_every=100,
        form_preview_prompts="miraxo",
    )  # fmt: skip
    said = page.call(start, page.without_states(start, given), "soak")
    assert "is_generating" in said, said[-500:]
    folder = next(path.parent for path in (server.home / "outputs").glob("*/config.toml"))
    log = folder / "events.jsonl"
    while '"kind":"finished"' not in (text := log.read_text() if log.exists() else ""):
        assert '"kind":"failed"' not in text, text[-500:]
        page.call(tick, page.without_states(tick, [folder.name, None]), "soak")  # the page stays open
        if '"kind":"step"' in text:
            sizes.look(server, painting=False)
        time.sleep(1)


def try_out(server: Server, page: Page, pictures: int, sizes: Sizes) -> None:
    """Make pictures, each of another seed."""
    make = page.called_by("make", "click")
    page.call(page.opened(), [], "soak2")
    for seed in range(1, pictures + 1):
        given = page.values(make, prompt="miraxo, smiling", seed=seed, try_steps=10, adapter="", strength=1)
        said = page.call(make, page.without_states(make, given), "soak2")
        assert "/media/picture/" in said, said[-500:]
        sizes.look(server, painting=True)


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description="Look at memory and open files over a long time.")
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
                begun = time.monotonic()
                train(server, page, options.steps, sizes)
                print(f"{options.steps} steps in {time.monotonic() - begun:.0f} s", flush=True)
                begun = time.monotonic()
                try_out(server, page, options.pictures, sizes)
                print(f"{options.pictures} pictures in {time.monotonic() - begun:.0f} s", flush=True)
        finally:
            server.stop()
            server.end_workers()
            sizes.tell()


if __name__ == "__main__":
    main()
