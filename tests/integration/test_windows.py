"""Limner on an emulated Windows: what a person does with the page, and what went wrong there."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests import windows
from tests.conftest import CHARACTER, HANG, wait
from tests.hostile import pictures
from trainer import runs
from trainer.runs import Run


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The disk of an emulated Windows, with the home of a user whose name is in no Western code page."""
    folder = tmp_path / "disk"
    (folder / "Users" / "José Łukasz" / "datasets").mkdir(parents=True)
    (folder / "Users" / "José Łukasz" / "outputs").mkdir()
    return folder


def home(disk: Path) -> Path:
    return disk / "Users" / "José Łukasz"


def python(disk: Path, code: str, *arguments: str | Path, reads: str = "utf-8", **variables: str) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = windows.environment(disk, home(disk)) | variables
    done = subprocess.run(command, env=environment, capture_output=True, encoding=reads, timeout=HANG)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_card_that_needs_another_torch_is_named(disk: Path) -> None:
    code = "from trainer.machine import other_cards; print(other_cards.advice())"
    cards = "Intel(R) UHD Graphics 770;AMD Radeon"
    advice = python(disk, code, LIMNER_EMULATED_CARDS=f"{cards} RX 7900 XTX")
    assert advice.startswith("There is a graphics card of AMD,")
    assert python(disk, code, LIMNER_EMULATED_CARDS=f"{cards}(TM) Graphics;NVIDIA GeForce RTX 3060") == ""


HELD = """
import sys, threading, time
from pathlib import Path
from trainer import storage
folder = Path(sys.argv[1])
storage.IN_USE = 1.0

def held(path, seconds):
    file = path.open("rb")
    threading.Timer(seconds, file.close).start()
    return file

def attempt(work, *arguments):
    try:
        work(*arguments)
    except OSError as error:
        return type(error).__name__
    return "done"

settings, checkpoint = folder / "config.toml", folder / "000005"
storage.write(settings, "old")
storage.write_folder(checkpoint, lambda part: storage.write(part / "a", "x"))
held(settings, 0.3)
print(attempt(storage.write, settings, "new"), settings.read_bytes())
held(checkpoint / "a", 0.3)
print(attempt(storage.write_folder, checkpoint, lambda part: storage.write(part / "a", "y")))
held(checkpoint / "a", 0.3)
print(attempt(storage.remove_folder, checkpoint))
held(settings, 0.3)
print(attempt(storage.remove, settings))
storage.write(settings, "old")
for_ever = settings.open("rb")
begun = time.monotonic()
print(attempt(storage.write, settings, "new"), time.monotonic() - begun > 1, settings.read_bytes())
print(sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.slow
def test_a_file_that_is_open_is_written_when_it_is_closed(disk: Path) -> None:
    (disk / "run").mkdir()
    done = ["done b'new'", "done", "done", "done", "PermissionError True b'old'", "['config.toml']"]
    assert python(disk, HELD, disk / "run").splitlines() == done


DOWNLOADED = """
from trainer import runs, storage
from trainer.errors import UserError
from trainer.runs import Run, archive
from trainer import paths
storage.IN_USE = 0.1
run = Run(paths.outputs() / "2026-01-01_120000_rin")
run.folder.mkdir()
storage.write(run.config_file, "")
with run.config_file.open("rb"):
    for work in (lambda: archive.rename(run, "better"), lambda: archive.delete(run)):
        try:
            work()
        except UserError as error:
            print(error.message)
print(archive.rename(run, "better").id)
"""


@pytest.mark.slow
def test_a_run_that_is_being_downloaded_is_not_moved(disk: Path) -> None:
    sentence = "Some of these files are in use, or may not be changed."
    assert python(disk, DOWNLOADED).splitlines() == [sentence, sentence, "2026-01-01_120000_better"]


SAMPLER = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    with open(request["out"], "w") as file:
        file.write(request["prompt"])
    print(json.dumps({"error": request["prompt"], "remedy": "ł"}, ensure_ascii=False), flush=True)
"""
PROMPT = """
import sys
from trainer import paths
from trainer.config import PictureConfig
from trainer.errors import UserError
from ui.state.sampler_client import SamplerClient
client = SamplerClient([sys.executable, "-c", sys.argv[1]])
out = paths.outputs() / "a.png"
try:
    list(client.generate(PictureConfig(prompt="café, łódź", out=str(out), steps=2)))
except UserError as error:
    print(ascii(str(error)), out.read_bytes())
client.close()
"""


@pytest.mark.slow
def test_a_prompt_arrives_as_it_was_typed(disk: Path) -> None:
    answer = "café, łódź"
    assert python(disk, PROMPT, SAMPLER) == f"{answer + ' ł'!a} {answer.encode()}"


CONSOLE = """
import sys, time
from pathlib import Path
from trainer import processes
wait = "import pathlib, sys, time; time.sleep(2); pathlib.Path(sys.argv[1]).touch()"
processes.start([sys.executable, "-c", wait, sys.argv[1]], outlives=True)
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_worker_goes_on_when_the_console_of_the_page_is_closed(disk: Path) -> None:
    done = disk / "done"
    command, environment = [sys.executable, "-c", CONSOLE, str(done)], windows.environment(disk, home(disk))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as page:
        assert page.stdout
        page.stdout.readline()
        os.killpg(page.pid, signal.SIGKILL)  # all that share the console
    wait(done.exists)


LIMITS = """
import sys
from trainer.data import dataset, sandbox
sandbox.MEMORY, sandbox.SECONDS = int(sys.argv[2]), float(sys.argv[3])
report = sandbox.add(dataset.create("rin"), [("good.png", sys.argv[4]), ("bad.png", sys.argv[1])])
print(report.added, [name for name, _ in report.refused])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "seconds"), [(150 * 2**20, 60), (2**30, 0.2)], ids=["memory", "time"])
def test_an_image_that_takes_too_much_is_left_out(disk: Path, memory: int, seconds: float) -> None:
    good, bad = disk / "good.png", disk / "bad.png"
    Image.new("RGB", (80, 80)).save(good)
    bad.write_bytes(pictures.png(7900, 7900, 8, 2, bytes(7900 * (3 * 7900 + 1))))
    assert python(disk, LIMITS, bad, str(memory), str(seconds), good) == "['good.png'] ['bad.png']"


@dataclass
class Page:
    """The page on the emulated Windows, used by a program."""

    disk: Path
    process: subprocess.Popen[bytes]
    url: str
    client: Any

    def call(self, endpoint: str, **values: Any) -> Any:  # noqa: ANN401 - JSON
        return self.client.predict(**values, api_name=f"/{endpoint}")

    def wait(self, run: str, status: str, step: int = 0) -> dict[str, Any]:
        """Wait until a run has a status, looking at it as a page does."""
        end = time.monotonic() + 240
        while True:
            view = dict(self.call("status", run=run))
            for address in view["previews"][-1:]:
                self.fetch(address)
            if view["status"] == status and view["step"] >= step:
                return view
            log = home(self.disk) / "outputs" / run / "worker.log"
            assert view["status"] in (*runs.ACTIVE, "paused"), (view, log.read_text(encoding="utf-8"))
            assert time.monotonic() < end, view
            time.sleep(0.2)

    def fetch(self, address: str) -> bytes:
        with urllib.request.urlopen(self.url + address, timeout=HANG) as answer:
            return bytes(answer.read())


@contextmanager
def serving(disk: Path) -> Iterator[Page]:
    from gradio_client import Client

    printed = disk.parent / "printed"
    with printed.open("wb") as out:
        command = [sys.executable, "app.py", "--port", "0", "--no-token"]
        environment = windows.environment(disk, home(disk))
        process = subprocess.Popen(command, cwd=windows.CHECKOUT, env=environment, stdout=out, stderr=out)
    try:
        wait(lambda: b"running at" in printed.read_bytes() or process.poll() is not None)
        assert process.poll() is None, printed.read_text(encoding="cp1252")
        url = printed.read_text(encoding="cp1252").split()[-1]
        yield Page(disk, process, url, Client(url, verbose=False, analytics_enabled=False))
    finally:
        process.kill()
        process.wait()


@pytest.mark.nightly
def test_the_main_job(disk: Path) -> None:
    """Start, watch, pause, stop, resume, try out, download, rename, delete and restore a run of two processes."""
    shutil.copytree(CHARACTER, home(disk) / "datasets" / "rin", ignore=shutil.ignore_patterns(".*"))
    with serving(disk) as page:
        settings = {"name": "mira", "trigger": "miraxo", "training.steps": 36, "training.devices": 2}
        settings |= {"training.batch_size": 2, "checkpoint.every": 3, "checkpoint.keep": 2}
        settings |= {"preview.every": 15, "preview.steps": 2}
        run = page.call("start_training", project="rin", settings=settings)["run"]
        folder = home(disk) / "outputs" / run
        wait(lambda: page.wait(run, "running")["checkpoints"])
        held = sorted((folder / "checkpoints").glob("0*"))[-1]
        with (held / "adapter.safetensors").open("rb"):  # a download that takes long
            windows.hold(disk, os.getpid())
            page.wait(run, "running", int(held.name) + 10)
            page.call("control", run=run, command="pause")
            page.wait(run, "paused")
            page.call("control", run=run, command="go_on")
            page.call("control", run=run, command="stop")
            step = page.wait(run, "stopped")["step"]
            assert held.exists()
            assert any(str(held) in violation for violation in windows.violations(disk))
        page.call("control", run=run, command="resume")
        page.wait(run, "running", step + 1)
        worker = psutil.Process(runs.look(Run(folder)).state.pid)
        ranks = worker.children()
        worker.kill()
        psutil.wait_procs(ranks, 20)
        assert not [rank for rank in ranks if rank.is_running()], "they end with the main process"
        assert ranks
        page.wait(run, "interrupted")
        page.call("control", run=run, command="resume")
        view = page.wait(run, "finished")
        assert (view["step"], view["message"]) == (36, "")
        assert step < 36
        log = (folder / "worker.log").read_text(encoding="utf-8")
        assert "Traceback" not in log
        assert Run(folder).config().record.devices == 2
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["000033", "000036"]
        key = page.call("list_adapters")[0]["key"]
        image = page.call("make_picture", prompt="miraxo, café, ł", adapter=key, settings={"steps": 2})["picture"]
        png = page.fetch(image)
        assert "miraxo, café, ł" in json.loads(Image.open(io.BytesIO(png)).info["limner"])["prompt"]
        assert page.fetch(view["previews"][0]).startswith(b"\x89PNG")
        assert page.fetch(view["adapter"]) == (folder / "mira.safetensors").read_bytes()
        renamed = page.call("rename_run", run=run, name="best")
        assert page.call("delete_run", run=renamed) == []
        assert page.call("restore_run") == renamed
    assert (home(disk) / "outputs" / renamed / "mira.safetensors").is_file()
