"""Upload ten thousand images in one zip: measure time, memory, and how fast the page answers meanwhile and then.

python -m benchmarks.many [--pictures 10000] [--side 512]
"""

import argparse
import io
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from tests.e2e.conftest import Server
from tests.e2e.test_network import Page

CARDS = 100  # of a page
AT_ONCE = 50
PAGE = 2.0  # seconds


def make_zip(path: Path, pictures: int, side: int) -> None:
    """Write images of soft noise, no two alike, each with its caption."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(pictures):
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            archive.writestr(f"{number:05d}.jpg", buffer.getvalue())
            archive.writestr(f"{number:05d}.txt", f"miraxo, number {number}")


def add_zip(page: Page, file: Path) -> tuple[float, str]:
    """Upload images to the project `many`, and import them; return when they had arrived, and the answer."""
    add = page.given("upload")
    with file.open("rb") as content:
        (path,) = page.web.post("/gradio_api/upload", files={"files": ("set.zip", content)}).json()
    arrived = time.monotonic()
    entry = {"path": path, "orig_name": "set.zip", "meta": {"_type": "gradio.FileData"}}
    values = page.values(add, project="many", trigger="miraxo", upload=[entry])
    return arrived, page.call(add, page.without_states(add, values), "many", seconds=900)


def watch(server: Server, ended: threading.Event, answers: list[float], memory: dict[str, float]) -> None:
    """Request the page again and again, and measure the memory of its process and of the upload process."""
    assert server.process is not None
    page = psutil.Process(server.process.pid)
    with httpx.Client(base_url=server.url, timeout=60) as web:
        while True:
            started = time.monotonic()
            assert web.get("/").status_code == 200
            answers.append(time.monotonic() - started)
            for process in (page, *page.children()):
                name = "page" if process == page else "upload"
                with suppress(psutil.NoSuchProcess):  # it ended just now
                    memory[name] = max(memory.get(name, 0), process.memory_info().rss / 2**20)
            if ended.wait(0.5):
                return


def turn_pages(page: Page, web: httpx.Client, pictures: int) -> tuple[float, str]:
    """Measure how long a page of the grid takes, alone and with many others; return the seconds of one, and a text."""
    turn = page.called_by("captions", "select")
    values = page.without_states(turn, page.values(turn, project="many", trigger="miraxo"))
    number = min(3, -(-pictures // CARDS))
    page.call(page.opened(), [], "turned", seconds=300)
    started = time.monotonic()
    answer = page.call(turn, values, "turned", event={"page": number}, seconds=300)
    drawn = time.monotonic() - started
    assert f"{(number - 1) * CARDS:05d}.jpg" in answer, answer[-1000:]
    names = [f"{number:05d}.jpg" for number in range(min(pictures, CARDS))]
    times = []
    for _ in range(2):  # thumbnails are made, and then known
        started = time.monotonic()
        assert all(web.get(f"/media/dataset/many/{name}").status_code == 200 for name in names)
        times.append(time.monotonic() - started)
    text = (
        f"a page of the grid: drawn in {drawn:.2f} s, its thumbnails in {times[0]:.2f} s, again in {times[1]:.2f} s\n"
    )
    started = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        calls = [
            pool.submit(page.call, page.opened(), [], f"at once {number}", seconds=300) for number in range(AT_ONCE)
        ]
        for call in calls:
            call.result()
    text += f"{AT_ONCE} pages opened at once in {time.monotonic() - started:.1f} s"
    return drawn + times[1], text


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description="Upload very many images at once.")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made, home = folder / "set.zip", folder / "home"
        make_zip(made, options.pictures, options.side)
        (home / "datasets" / "many").mkdir(parents=True)
        (home / "outputs").mkdir()
        server = Server(home)
        answers: list[float] = []
        memory: dict[str, float] = {}
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(server, ended, answers, memory))
        try:
            server.start()
            watcher.start()
            with httpx.Client(base_url=server.url, timeout=600) as web:
                page = Page(web, web.get("/config").json())
                page.call(page.opened(), [], "many")
                started = time.monotonic()
                uploaded, answer = add_zip(page, made)
                imported = time.monotonic()
                page.call(page.opened(), [], "again", seconds=300)
                opened = time.monotonic()
                turned, text = turn_pages(page, web, options.pictures)
        finally:
            ended.set()
            watcher.join()
            server.stop()
        size = made.stat().st_size / 2**20
        kept = len(list((home / "datasets" / "many").glob("*.jpg")))
        assert kept == options.pictures, answer[-1000:]
        print(f"{kept} pictures ({size:.0f} MB) kept")
        print(f"upload {uploaded - started:.0f} s, imported and shown {imported - uploaded:.0f} s")
        print(f"the page with them reopened in {opened - imported:.1f} s")
        print(text)
        print("peak memory, MB:", ", ".join(f"{process} {size:.0f}" for process, size in memory.items()))
        print(f"page answered {len(answers)} times, at most after {max(answers):.2f} s")
        assert turned <= PAGE, "a page of the grid takes too long"


if __name__ == "__main__":
    main()
