"""Load the page with many clients while it trains: how much slower are the steps, how fast does the page answer?

    python -m benchmarks.crowd [--rounds 3] [--seconds 20] [--pages 50] [--followers 20] [--pictures 10000]

A run of micro trains undisturbed, beside connections and beside pages, in turns, so that other load of the machine hits
all alike. The connections are 200 that are open, half of which send a request byte by byte, and a slow upload. Of the
pages, all of which are opened at once, some follow the run, as the run view does; the others browse a project of many
images: they choose it, turn its pages and load thumbnails. They call the server as a browser does. An answer that is
an error fails the benchmark.
"""

import argparse
import random
import socket
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.many import CARDS, add_zip, make_zip
from tests.e2e.conftest import Server, make_home
from tests.e2e.test_network import Page
from trainer.runs import events

SIDE = 64  # pixels of the many images
THUMBNAILS = 12  # that are in sight
LOOKED_AT = 2.0  # seconds, until the next page of images is asked for
PATIENCE = 300.0  # seconds, after which an answer counts as failed
POLLED_EVERY = 1.0  # seconds, by the run view


@dataclass(frozen=True)
class Answers:
    """Seconds that the page took to answer, by what was asked for, and what failed."""

    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Measure one answer."""
        started = time.monotonic()
        try:
            yield
        except (AssertionError, httpx.HTTPError) as error:
            self.failures.append(f"{kind}: {type(error).__name__} {str(error)[:200]}")
        self.seconds[kind].append(time.monotonic() - started)

    def print(self) -> None:
        """Print the median, the 95th percentile and the longest of each kind."""
        for kind, seconds in self.seconds.items():
            middle, late, last = np.percentile(seconds, [50, 95, 100])
            print(f"{kind}: {len(seconds)} answers, median {middle:.2f} s, 95 % within {late:.2f} s, all {last:.2f} s")


@dataclass(frozen=True)
class Visitor:
    """One open page."""

    page: Page
    session: str
    answers: Answers

    def call(self, kind: str, function: dict[str, Any], event: object = None, **values: object) -> None:
        """Call a function of the page with some values changed."""
        data = self.page.without_states(function, self.page.values(function, **values))
        with self.answers.timed(kind):
            answer = self.page.call(function, data, self.session, event, PATIENCE)
            assert '"success":true' in answer, answer[-300:]

    def open(self) -> None:
        """Load the page."""
        with self.answers.timed("the page"):
            assert self.page.web.get("/").status_code == 200
        self.call("what is in it", self.page.opened())

    def follow(self, run: str, gone: threading.Event) -> None:
        """Poll the run view."""
        timers = [function for function in self.page.functions if any(t[1] == "tick" for t in function["targets"])]
        tick = next(function for function in timers if not function["queue"])
        values = self.page.without_states(tick, self.page.values(tick, run=run, project="example-character"))
        body = {"fn_index": tick["id"], "data": values, "session_hash": self.session}
        while not gone.wait(POLLED_EVERY):
            with self.answers.timed("the run view"):
                answer = self.page.web.post("/gradio_api/run/predict", json=body)
                assert answer.status_code == 200, answer.text[:300]

    def browse(self, pictures: int, gone: threading.Event) -> None:
        """Choose the project of many images, turn its pages, and look at thumbnails."""
        choose, turn = self.page.called_by("project", "input"), self.page.called_by("captions", "select")
        chance = random.Random(self.session)
        self.call("a project", choose, project="many")
        while not gone.wait(LOOKED_AT):
            number = chance.randrange(-(-pictures // CARDS))
            self.call("images", turn, {"page": number + 1}, project="many", trigger="miraxo")
            for image in range(number * CARDS, min(pictures, number * CARDS + THUMBNAILS)):
                with self.answers.timed("a thumbnail"):
                    assert self.page.web.get(f"/media/dataset/many/{image:05d}.jpg").status_code == 200


@contextmanager
def connections(port: int) -> Iterator[None]:
    """Keep connections open inside the `with` that send nothing, or their request byte by byte."""
    idle = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(200)]
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1000000\r\n\r\n"
    idle[-1].sendall(head.encode())
    gone = threading.Event()

    def trickle() -> None:
        while not gone.wait(0.1):
            for connection in [*idle[:100], idle[-1]]:
                with suppress(OSError):
                    connection.sendall(b"G")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        yield
    finally:
        gone.set()
        thread.join()
        for connection in idle:
            connection.close()


@contextmanager
def visitors(page: Page, run: str, answers: Answers, options: argparse.Namespace) -> Iterator[None]:
    """Keep pages open inside the `with`: some follow the run, the others look at images."""
    gone = threading.Event()

    def visit(number: int) -> None:
        with httpx.Client(base_url=page.web.base_url, timeout=PATIENCE) as web:
            visitor = Visitor(replace(page, web=web), f"{time.monotonic_ns()} {number}", answers)
            visitor.open()
            if number < options.followers:
                visitor.follow(run, gone)
            else:
                visitor.browse(options.pictures, gone)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(options.pages)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        gone.set()
        for thread in threads:
            thread.join()


def start(page: Page, outputs: Path) -> Path:
    """Start a run from the page; return its log after its first step."""
    button = page.called_by("start", "click")
    values = page.values(
        button, project="example-character", name="rin", train_trigger="miraxo", preset="character",
        form_training_steps=100_000, form_training_batch_size=1, form_preservation_share=0.0,
        form_preview_every=0, form_checkpoint_every=100_000,
    )  # fmt: skip
    page.call(page.opened(), [], "trains")
    page.call(button, page.without_states(button, values), "trains")
    log = next(outputs.glob("*/config.toml")).with_name("events.jsonl")
    while not steps(log):
        time.sleep(0.1)
    return log


def steps(log: Path) -> list[events.Step]:
    """Return the steps that a run has done."""
    done = events.read(log)[0]
    assert not any(isinstance(event, events.Failed) for event in done), done[-1]
    return [event for event in done if isinstance(event, events.Step)]


def rate(log: Path, seconds: float) -> float:
    """Count the steps per second for a while."""
    started, before = time.monotonic(), len(steps(log))
    time.sleep(seconds)
    return (len(steps(log)) - before) / (time.monotonic() - started)


@dataclass
class Figures:
    """What was measured: steps per second by crowd, the page's memory in MB, and seconds of CPU beside pages."""

    rates: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: list[float] = field(default_factory=list)
    seconds: float = 0.0
    of_page: float = 0.0
    of_visitors: float = 0.0

    def note_memory(self, program: psutil.Process) -> None:
        """Measure the memory of the page."""
        self.memory.append(program.memory_info().rss / 2**20)

    @contextmanager
    def timed(self, program: psutil.Process) -> Iterator[None]:
        """Count the seconds inside the `with`."""
        before = time.monotonic(), sum(program.cpu_times()[:2]), time.process_time()
        yield
        self.seconds += time.monotonic() - before[0]
        self.of_page += sum(program.cpu_times()[:2]) - before[1]
        self.of_visitors += time.process_time() - before[2]

    def print(self) -> None:
        """Print them."""
        for crowd, rates in self.rates.items():
            ratio = sum(rates) / sum(self.rates["alone"])
            print(f"steps per second {crowd}: {', '.join(f'{rate:.2f}' for rate in rates)} ({ratio:.0%})")
        print(
            f"memory of the page, at first and after each crowd: {', '.join(f'{size:.0f}' for size in self.memory)} MB"
        )
        share, own = self.of_page / self.seconds, self.of_visitors / self.seconds
        print(f"beside pages, for {self.seconds:.0f} s: the page took {share:.0%} of a core, the visitors {own:.0%}")


@contextmanager
def served(pictures: int) -> Iterator[tuple[Server, Page]]:
    """Serve a home with a project of many images inside the `with`."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(make_home(Path(folder) / "home"))
        (server.home / "datasets" / "many").mkdir()
        zip_file = Path(folder) / "many.zip"
        make_zip(zip_file, pictures, SIDE)
        try:
            server.start(OMP_NUM_THREADS="1")
            with httpx.Client(base_url=server.url, timeout=600) as web:
                page = Page(web, web.get("/config").json())
                page.call(page.opened(), [], "many", seconds=300)
                add_zip(page, zip_file)
                yield server, page
        finally:
            try:
                server.stop()
            finally:
                server.end_workers()


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description="Train while many clients use the page.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--followers", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=10_000)
    options = parser.parse_args()
    answers, figures = Answers(), Figures()
    with served(options.pictures) as (server, page):
        assert server.process is not None
        program = psutil.Process(server.process.pid)
        log = start(page, server.home / "outputs")
        figures.note_memory(program)
        for crowd in ("alone", "beside connections", "beside pages") * options.rounds:
            with ExitStack() as around:
                if crowd == "beside connections":
                    around.enter_context(connections(server.port))
                elif crowd == "beside pages":
                    around.enter_context(visitors(page, log.parent.name, answers, options))
                    around.enter_context(figures.timed(program))
                figures.rates[crowd].append(rate(log, options.seconds))
            figures.note_memory(program)
            print(f"{crowd}: {figures.rates[crowd][-1]:.2f} steps/s", flush=True)
        print(f"a run that has done {len(steps(log))} steps")
    figures.print()
    answers.print()
    if answers.failures:
        sys.exit("\n".join([f"{len(answers.failures)} answers failed", *answers.failures[:10]]))


if __name__ == "__main__":
    main()
