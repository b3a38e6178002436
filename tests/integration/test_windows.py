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
from tests.conftest import CHARACTER
from tests.hostile import pictures
from tests.integration.runs.test_processes import wait_until
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
    """Run a program on the emulated Windows; return what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = windows.environment(disk, home(disk)) | variables
    done = subprocess.run(command, env=environment, capture_output=True, encoding=reads, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


MISSING = """
import subprocess, sys
from pathlib import Path
namespace = {"__file__": f"{sys.argv[1]}/trainer/example.py", "__name__": "trainer.example"}
def run(code):
    try:
        exec(code, namespace)
    except Exception as error:
        return type(error).__name__
print(*map(run, sys.argv[2:]))
"""


def test_the_emulation_takes_away_what_windows_lacks(disk: Path) -> None:
    codes = {
        "import os, signal, socket, sys, subprocess": "None",
        "import resource": "ModuleNotFoundError",
        "os.fork()": "AttributeError",
        "signal.SIGKILL": "AttributeError",
        "from socket import AF_UNIX": "ImportError",
        "subprocess.Popen(['true'], preexec_fn=print)": "ValueError",
        "assert (os.name, sys.platform) == ('nt', 'win32')": "None",
        "import multiprocessing; multiprocessing.get_context('fork')": "ValueError",
    }
    told = python(disk, MISSING, windows.CHECKOUT, *codes)
    assert told.split() == list(codes.values())


@pytest.mark.parametrize(
    ("cards", "words"),
    [
        ("Intel(R) UHD Graphics 770;AMD Radeon RX 7900 XTX", "There is a graphics card of AMD,"),
        ("Intel(R) Arc(TM) A770 Graphics", "There is a graphics card of Intel,"),
        ("Intel(R) UHD Graphics 770;AMD Radeon(TM) Graphics;NVIDIA GeForce RTX 3060", ""),
        ("", ""),
    ],
)
def test_a_card_that_needs_another_torch_is_named(disk: Path, cards: str, words: str) -> None:
    code = "from trainer import other_cards; print(other_cards.advice())"
    assert python(disk, code, LIMNER_EMULATED_CARDS=cards)[: len(words) or None] == words


DISK = """
import os, sys
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "a").write_bytes(b"a")
(folder / "b").write_bytes(b"b")
def attempt(work, *arguments):
    try:
        work(*arguments)
    except OSError as error:
        return type(error).__name__
    return "None"
with (folder / "a").open("rb"):
    print(attempt((folder / "b").replace, folder / "a"), attempt((folder / "a").unlink))
    print(attempt(folder.rename, folder.with_name("other")))
print(attempt((folder / "b").rename, folder / "a"), attempt((folder / "aux.txt").touch))
print(attempt((folder / "A").open, "x"), attempt((folder / "c.").mkdir), attempt((folder / "b").rename, folder / "B"))
(folder / "text").open("w").write("café")
print((folder / "text").read_bytes(), sys.stdout.encoding)
"""


def test_the_emulation_protects_files_that_are_open(disk: Path) -> None:
    (disk / "x").mkdir()
    assert python(disk, DISK, disk / "x").splitlines() == [
        "PermissionError PermissionError",
        "PermissionError",
        "FileExistsError OSError",
        "FileExistsError OSError None",
        "b'caf\\xe9' cp1252",
    ]
    assert len(windows.violations(disk)) == 3
    assert python(disk, "import sys; print('ü', sys.flags.utf8_mode)", PYTHONUTF8="1") == "ü 1"


# Files that are open --------------------------------------------------------------------------------------------

HELD = """
import sys, threading, time
from pathlib import Path
from trainer import storage
folder = Path(sys.argv[1])
storage.IN_USE = 2.0

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
print(attempt(storage.write, settings, "new"), time.monotonic() - begun > 2, settings.read_bytes())
print(sorted(path.name for path in folder.iterdir()))
"""


def test_what_a_page_or_scanner_has_open_is_written_when_it_has_closed_it(disk: Path) -> None:
    (disk / "run").mkdir()
    assert python(disk, HELD, disk / "run").splitlines() == [
        "done b'new'",
        "done",
        "done",
        "done",
        "PermissionError True b'old'",
        "['config.toml']",
    ]


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


def test_a_run_that_is_being_downloaded_is_not_moved_and_it_is_said(disk: Path) -> None:
    sentence = "Some of these files are in use, or may not be changed."
    assert python(disk, DOWNLOADED).splitlines() == [sentence, sentence, "2026-01-01_120000_better"]


LOOKED_AT = """
from trainer import paths, storage
from trainer.errors import UserError
from ui.state import projects
storage.IN_USE = 0.1
name = projects.create("Rin")
image = paths.datasets() / name / "01.png"
storage.write(image, "")
with image.open("rb"):
    try:
        projects.delete(name)
    except UserError as error:
        print(error)
print(image.is_file())
projects.delete(name)
with (projects.deleted()[0] / "01.png").open("rb"):
    try:
        projects.restore_last()
    except UserError as error:
        print(error.message)
print(projects.restore_last(), image.is_file())
"""


def test_a_project_with_an_image_that_another_program_shows_is_not_moved_and_it_is_said(disk: Path) -> None:
    sentence = "Some of these files are in use, or may not be changed."
    remedy = "Close the programs that have them open, wait for downloads, then try again."
    assert python(disk, LOOKED_AT).splitlines() == [f"{sentence} {remedy}", "True", sentence, "Rin True"]


SERVED = """
import os
from trainer import paths
from ui import launch
from ui.state import page_folders, pending_uploads
from ui.tabs import sample_images
sample_images.KEPT = 1
paths.uploads().mkdir()
page_folders.sample_images().mkdir()
upload = paths.uploads() / "a.png"
upload.write_bytes(b"a")
images = [page_folders.sample_images() / f"{number}.png" for number in range(3)]
for number, image in enumerate(images):
    image.write_bytes(b"a")
    os.utime(image, (number, number))
with upload.open("rb"), images[1].open("rb"):
    pending_uploads.delete_expired(0)
    sample_images.prune()
    launch.prepare_environment()
print([path.exists() for path in (upload, *images)])
sample_images.prune()
pending_uploads.delete_expired(0)
print([path.exists() for path in (upload, *images)])
"""


def test_files_that_are_sent_to_a_browser_are_cleaned_up_later(disk: Path) -> None:
    assert python(disk, SERVED).splitlines() == ["[True, False, True, True]", "[False, False, False, True]"]


# Text -----------------------------------------------------------------------------------------------------------

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


def test_a_prompt_arrives_as_it_was_typed(disk: Path) -> None:
    answer = "café, łódź"
    assert python(disk, PROMPT, SAMPLER) == f"{answer + ' ł'!a} {answer.encode()}"


TOOL = """
import sys
from trainer.errors import UserError
from ui.tabs import file_tools
try:
    file_tools.call(["inspect", sys.argv[1], "--json"])
except UserError as error:
    print(ascii(str(error)))
"""


def test_a_tool_names_a_file_as_it_is_called(disk: Path) -> None:
    file = home(disk) / "Zoë Łuk.safetensors"
    file.write_bytes(b"no adapter")
    assert ascii(file.name)[1:-1] in python(disk, TOOL, file)


def test_output_has_escapes_for_letters_that_its_code_page_lacks(disk: Path) -> None:
    folder = home(disk) / "datasets" / "rin"
    folder.mkdir()
    Image.new("RGB", (80, 80)).save(folder / "łé.png")
    code = "from trainer.cli.commands import main; main(['check', 'rin'])"
    assert "\\u0142é.png" in python(disk, code, reads="cp1252")


# Processes, ports, limits ---------------------------------------------------------------------------------------

CONSOLE = """
import sys, time
from pathlib import Path
from trainer import processes
wait = "import pathlib, sys, time; time.sleep(2); pathlib.Path(sys.argv[1]).touch()"
processes.start([sys.executable, "-c", wait, sys.argv[1]], outlives=True)
print("started", flush=True)
time.sleep(60)
"""


def test_a_worker_goes_on_when_the_console_of_the_page_is_closed(disk: Path) -> None:
    done = disk / "done"
    with subprocess.Popen(
        [sys.executable, "-c", CONSOLE, str(done)],
        env=windows.environment(disk, home(disk)), stdout=subprocess.PIPE, start_new_session=True,
    ) as page:  # fmt: skip
        assert page.stdout
        page.stdout.readline()
        os.killpg(page.pid, signal.SIGKILL)  # all that share the console
    wait_until(done.exists, 20)


PORTS = """
from ui import launch
first = launch.bind("127.0.0.1", 0)
port = first.getsockname()[1]
second = launch.bind("127.0.0.1", port)
print(second.getsockname()[1] != port)
"""


def test_a_port_belongs_to_one_server(disk: Path) -> None:
    assert python(disk, PORTS).splitlines()[-1] == "True"


LIMITS = """
import sys
from trainer.data import dataset, sandbox
sandbox.MEMORY, sandbox.SECONDS = int(sys.argv[2]), float(sys.argv[3])
report = sandbox.add(dataset.create("rin"), [("good.png", sys.argv[4]), ("bad.png", sys.argv[1])])
print(report.added, [name for name, _ in report.refused])
"""


@pytest.mark.parametrize(("memory", "seconds"), [(150 * 2**20, 60), (2**30, 0.2)], ids=["memory", "time"])
def test_an_image_that_takes_too_much_is_named_and_the_others_are_kept(disk: Path, memory: int, seconds: float) -> None:
    good, bad = disk / "good.png", disk / "bad.png"
    Image.new("RGB", (80, 80)).save(good)
    bad.write_bytes(pictures.png(7900, 7900, 8, 2, bytes(7900 * (3 * 7900 + 1))))
    assert python(disk, LIMITS, bad, str(memory), str(seconds), good) == "['good.png'] ['bad.png']"


# The main job ---------------------------------------------------------------------------------------------------


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
        with urllib.request.urlopen(self.url + address, timeout=60) as answer:
            return bytes(answer.read())


@contextmanager
def serving(disk: Path) -> Iterator[Page]:
    from gradio_client import Client

    printed = disk.parent / "printed"
    with printed.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", "0", "--no-token"],
            cwd=windows.CHECKOUT, env=windows.environment(disk, home(disk)), stdout=out, stderr=out,
        )  # fmt: skip
    try:
        wait_until(lambda: b"running at" in printed.read_bytes() or process.poll() is not None)
        assert process.poll() is None, printed.read_text(encoding="cp1252")
        url = printed.read_text(encoding="cp1252").split()[-1]
        yield Page(disk, process, url, Client(url, verbose=False, analytics_enabled=False))
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_main_job(disk: Path) -> None:
    """Start, watch, pause, stop, resume, try out, download, rename, delete and restore a run of two processes."""
    shutil.copytree(CHARACTER, home(disk) / "datasets" / "rin", ignore=shutil.ignore_patterns(".*"))
    with serving(disk) as page:
        settings = {
            "name": "mira", "trigger": "miraxo", "training.steps": 36, "training.devices": 2, "preview.every": 15,
            "preview.steps": 2, "checkpoint.every": 3, "checkpoint.keep": 2, "training.batch_size": 2,
        }  # fmt: skip
        run = page.call("start_training", project="rin", settings=settings)["run"]
        folder = home(disk) / "outputs" / run
        wait_until(lambda: page.wait(run, "running")["checkpoints"], 240)
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


@pytest.mark.slow
def test_where_gloo_does_not_start_a_run_has_one_process_and_a_note(disk: Path, tiny_sd: Path) -> None:
    shutil.copytree(CHARACTER, home(disk) / "datasets" / "rin", ignore=shutil.ignore_patterns(".*"))
    toml, folder = disk / "mira.toml", disk / "run"
    toml.write_text(
        f'name = "mira"\ndataset = "rin"\nmodel.base = "{tiny_sd}"\npreview.every = 0\n'
        "[training]\nsteps = 2\nbatch_size = 4\nresolution = 64\ndevices = 2\n",
        encoding="utf-8",
    )
    code = "import sys; from trainer.cli.commands import main; sys.exit(main(sys.argv[1:]))"
    python(disk, code, "train", toml, "--run", folder, GLOO_SOCKET_IFNAME="none")
    view = runs.look(Run(folder))
    assert view.status == "finished"
    assert view.state.warnings[0].startswith("On this machine processes cannot share the work")
    assert Run(folder).config().record.devices == 1
