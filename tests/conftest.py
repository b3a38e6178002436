"""Fixtures for all tests: a home folder of its own for each, and tiny real models made once."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("limner", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("limner")
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", GRADIO_ANALYTICS_ENABLED="False")
os.environ.update(TRANSFORMERS_VERBOSITY="error", DIFFUSERS_VERBOSITY="error", LANGUAGE="en")

CHECKOUT = Path(__file__).resolve().parent.parent
os.environ.setdefault("LIMNER_ALSO_WRITABLE", str(CHECKOUT) if "COVERAGE_PROCESS_CONFIG" in os.environ else "")
CHARACTER = CHECKOUT / "datasets" / "example-character"
STYLE = CHECKOUT / "datasets" / "example-style"
HANG = 600  # seconds after which what a test waits for will never come, also on a machine that has much else to do
_BEGUN = pytest.StashKey[float]()


def wait(what: Callable[[], object], *, every: float = 0.05) -> None:
    end = time.monotonic() + HANG
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(every)


def unmeasured() -> dict[str, str]:
    """Return the environment of this process for a child that does not measure its coverage, which halves its speed."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}


def python(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout, in the environment of this process unless it is given."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, encoding="utf-8")


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Check that fewer bytes are allocated inside the `with`."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def _process() -> Iterator[None]:
    """Restore what a command sets in this process: signal handlers, so that pytest can be ended, and the umask."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    os.umask(umask)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


@pytest.fixture(autouse=True, scope="session")
def _no_power_cut() -> None:
    """Wait for no disk in this process: no test cuts the power, and those of syncing look at its calls."""
    os.fsync = lambda descriptor: None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder with `datasets/` and `outputs/`, which this process and its workers use."""
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "outputs").mkdir()
    return tmp_path


@pytest.fixture
def character(home: Path) -> Path:
    """The shipped example character in the home folder, as data set `rin`, without the class that its captions name."""
    folder = home / "datasets" / "rin"
    shutil.copytree(CHARACTER, folder, ignore=shutil.ignore_patterns(".cache"))
    for path in folder.glob("*.txt"):  # stored losses and other figures are of these captions
        path.write_text(path.read_text().replace("a person, ", ""))
    return folder


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny, random Stable Diffusion 1.x model that has the real module names."""
    from tests.tiny import make_sd

    return make_sd(tmp_path_factory.mktemp("tiny") / "sd15")


@pytest.fixture(scope="session")
def bases(tiny_sd: Path) -> dict[str, Path]:
    from tests.tiny import MAKERS

    return {"sd15": tiny_sd} | {kind: make(tiny_sd.parent / kind) for kind, make in MAKERS.items() if kind != "sd15"}


@pytest.fixture(scope="session")
def _tiny_configs(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.single_file import write_configs

    return write_configs(tmp_path_factory.mktemp("configs") / "configs", bases)


@pytest.fixture
def tiny_configs(_tiny_configs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny models' settings in the place of the published ones, so that a tiny single file can be loaded."""
    from trainer.families.files import loading, outlines, text_encoders

    for module in (loading, outlines, text_encoders):
        monkeypatch.setattr(module, "CONFIGS", _tiny_configs)
    return _tiny_configs


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own in memory, for which one must be root."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("only root can make a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_BEGUN] = sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if call.when == "teardown" and _BEGUN in item.stash:  # else a mark skipped it before it began
        report.user_properties.append(("cpu", sum(os.times()[:4]) - item.stash[_BEGUN]))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the CPU seconds of each folder: of the tests and of the processes that ended with them."""
    seconds: Counter[str] = Counter()
    for report in terminalreporter.getreports(""):
        folder = report.nodeid.removeprefix("tests/").partition("/")[0]
        seconds[folder] += dict(report.user_properties).get("cpu", 0.0)
    spent = [f"{folder} {total:.0f}" for folder, total in seconds.items()]
    terminalreporter.write_line(f"CPU seconds: {', '.join(spent)}")
