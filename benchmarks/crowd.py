"""Load the page with many clients while it trains: how much slower are the steps, how fast does the page answer?

    python -m benchmarks.crowd [--rounds 3] [--seconds 20]

The crowd is 200 open connections, half of which send a request byte by byte, and a client that uploads slowly. It comes
and goes, so that other load on the machine affects both halves alike.
"""

import argparse
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from tests.e2e.conftest import Server, make_home
from tests.e2e.test_network import Page
from trainer.runs import events


@contextmanager
def crowd(port: int) -> Iterator[None]:
    """Keep the crowd connected inside the `with`."""
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


def measure(log: Path, url: str, seconds: float) -> tuple[int, list[float]]:
    """Count the steps done in this time, and measure how long the page takes to answer."""
    answers = []
    before = len(events.read(log)[0])
    end = time.monotonic() + seconds
    with httpx.Client(base_url=url, timeout=60) as web:
        while time.monotonic() < end:
            started = time.monotonic()
            assert web.get("/").status_code == 200
            answers.append(time.monotonic() - started)
            time.sleep(1)
    return len(events.read(log)[0]) - before, answers


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description="Train while many clients use the page.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(make_home(Path(folder)))
        try:
            server.start(OMP_NUM_THREADS="1")
            with httpx.Client(base_url=server.url, timeout=60) as web:
                page = Page(web, web.get("/config").json())
                page.call(page.opened(), [], "crowd")
                start = page.called_by("start", "click")
                values = page.values(
                    start, project="example-character", name="rin", train_trigger="miraxo", preset="character",
                    form_training_steps=100_000, form_training_batch_size=1, form_preservation_share=0.0,
                    form_preview_every=0, form_checkpoint_every=100_000,
                )  # fmt: skip
                page.call(start, page.without_states(start, values), "crowd")
            log = next((server.home / "outputs").glob("*/config.toml")).with_name("events.jsonl")
            while not log.exists() or '"kind":"step"' not in log.read_text(encoding="utf-8"):
                time.sleep(1)
            assert server.process is not None
            program = psutil.Process(server.process.pid)
            alone, beside, slowest, busy = [], [], 0.0, 0.0
            for _ in range(options.rounds):
                alone.append(measure(log, server.url, options.seconds)[0])
                with crowd(server.port):
                    before = sum(program.cpu_times()[:2])
                    steps, answers = measure(log, server.url, options.seconds)
                    busy += sum(program.cpu_times()[:2]) - before
                beside.append(steps)
                slowest = max(slowest, *answers)
        finally:
            server.stop()
            server.end_workers()
    change = sum(beside) / sum(alone) - 1
    print(f"steps in {options.seconds:g} s: alone {alone}, with a crowd {beside} ({change:+.1%})")
    print(f"the page took {busy / options.rounds / options.seconds:.0%} of a core for the crowd")
    print(f"the page answered after {slowest:.2f} s at the latest while the crowd was there")


if __name__ == "__main__":
    main()
