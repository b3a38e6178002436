"""Cards that are not used: each cause has its sentence and the command that helps."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer import processes
from trainer.machine import nvidia
from trainer.machine.nvidia import Card
from ui.state import device_load

RTX_3060 = Card("NVIDIA GeForce RTX 3060", "576.80", (8, 6))
RTX_5090 = Card("NVIDIA GeForce RTX 5090", "572.16", (12, 0))
GTX_1080 = Card("NVIDIA GeForce GTX 1080", "560.94", (6, 1))


@pytest.mark.parametrize(
    ("card", "cuda", "words"),
    [
        (RTX_3060, (12, 8), ""),
        (RTX_3060, (13, 0), "its driver 576.80 is too old for CUDA 13.0, which needs at least 580"),
        (Card("Tesla T4", "470.57.02", (7, 5)), (12, 8), "driver 470.57.02 is too old for CUDA 12.8"),
        (
            RTX_3060,
            None,
            f'for CPUs only. Install the one for NVIDIA cards: "{sys.executable}" -m pip install '
            "--force-reinstall torch --index-url https://download.pytorch.org/whl/cu126",
        ),
        (
            GTX_1080,
            (12, 8),
            f'has no code for it. Install the one that has: "{sys.executable}" -m pip install '
            "--force-reinstall torch --index-url https://download.pytorch.org/whl/cu126",
        ),
        (GTX_1080, (12, 6), ""),
        (Card("RTX 4090", "580.65.06", (8, 9)), None, "whl/cu130"),
        (Card("Tesla V100", "580.65", (7, 0)), None, "whl/cu126"),
        (RTX_5090, (12, 6), "whl/cu130"),
    ],
)
def test_a_card_that_is_not_used_is_explained(card: Card, cuda: tuple[int, int] | None, words: str) -> None:
    sentence = nvidia.explain(card, cuda)
    assert words in sentence
    assert bool(words) == bool(sentence)


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", (12, 8)),
        ("__version__ = '2.13.0'\ncuda: str | None = '13.0'\n", (13, 0)),
        ("__version__ = '2.9.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", None),
    ],
)
def test_what_torch_was_built_for_is_read_without_it(tmp_path: Path, text: str, cuda: tuple[int, int] | None) -> None:
    (tmp_path / "version.py").write_text(text)
    assert nvidia.built_for(tmp_path / "version.py") == cuda


def forget() -> None:
    nvidia.advice.cache_clear()
    nvidia.installed.cache_clear()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program in the place of the driver's."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    forget()
    yield tmp_path / "nvidia-smi"
    forget()


def answering(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    forget()


def test_the_driver_is_asked(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "built_for", lambda: None)
    answering(driver, 'echo "576.80, 8.6, NVIDIA GeForce RTX 3060"; echo "576.80, 6.1, NVIDIA GeForce GTX 1080"')
    assert nvidia.query(str(driver))[1] == Card("NVIDIA GeForce GTX 1080", "576.80", (6, 1))
    assert nvidia.advice().startswith("NVIDIA GeForce RTX 3060 is not used: the installed torch is for CPUs only.")
    assert sys.executable in nvidia.explain(RTX_3060, None)
    for script in ("exit 9", "echo '[N/A], [N/A], x'"):
        answering(driver, script)
        assert "The driver of the NVIDIA card does not answer." in nvidia.advice()


def test_a_machine_without_a_card_is_left_alone(driver: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvidia, "PROGRAMS", ("no-such-program",))
    monkeypatch.setattr(nvidia, "DRIVER_FILE", tmp_path / "none")
    assert nvidia.advice() == ""
    (tmp_path / "none").touch()
    nvidia.advice.cache_clear()
    assert "not its program nvidia-smi" in nvidia.advice()


def test_the_load_of_the_cards_is_asked(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = RTX_3060.name
    answering(driver, f"echo '0, 87, 6144, 8192, {name}'; echo '1, 90, 2, 8, {name}'")
    assert nvidia.usage()[0] == nvidia.Usage("0", name, 0.87, 6144 * 2**20, 8192 * 2**20)
    monkeypatch.setattr(device_load, "_latest", {})
    busy = [load and load.busy for load in (device_load.current(name, *number) for number in ((), ("1",), ("7",)))]
    assert busy == [0.87, 0.9, None], "of several cards, that of the run's own"
    for script in ("exit 9", "echo '0, [N/A], 1, 2, x'"):
        answering(driver, script)
        assert nvidia.usage() == []


def test_the_load_of_the_processor_is_told_to_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_load, "VALID", 0.0)
    busy = processes.start([sys.executable, "-c", "while True: pass"])
    loads = []
    for _ in range(2):
        with ThreadPoolExecutor(1) as thread:
            loads.append(thread.submit(device_load.current, "CPU").result())
    busy.kill()
    busy.wait()
    assert all(load and 0 < load.busy <= 1 for load in loads)


def test_devices_are_made_by_the_drivers_program(driver: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments, program = tmp_path / "arguments", driver.with_name("nvidia-modprobe")
    answering(program, f'echo "$*" > {arguments}')
    nvidia.make_devices()
    assert not arguments.exists()
    monkeypatch.setattr(nvidia, "DRIVER_FILE", program)
    nvidia.make_devices()
    assert arguments.read_text() == "-c 0 -u\n"
