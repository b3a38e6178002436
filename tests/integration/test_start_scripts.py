"""What people double-click or build: the start scripts, the Dockerfile, and where uv takes torch from.

Installing takes gigabytes, so that Python, nvidia-smi and uname are stand-ins here, which write down what is asked.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker

from tests.conftest import CHECKOUT

PYTORCH = "https://download.pytorch.org/whl"
BATCH = (CHECKOUT / "start.bat").read_bytes().decode("ascii")

PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit ${TOO_OLD:-0}
echo "$@" >> "$ASKED"
if [ "$2" = venv ]; then
  mkdir -p .venv/bin && cp "$0" .venv/bin/python
fi
"""


class Machine:
    """A machine with a copy of Limner in a folder with a space and an umlaut in its name, and a path of stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.limner, self.programs, self.asked = folder / "My Läb", folder / "bin", folder / "asked"
        self.limner.mkdir()
        self.programs.mkdir()
        for name in ("start.sh", "pyproject.toml"):
            shutil.copy(CHECKOUT / name, self.limner)
        for name in ("bash", "sh", "cmp", "cp", "dirname", "head", "mkdir", "tr", "uname"):
            (self.programs / name).symlink_to(str(shutil.which(name)))
        self.provide("python3", PYTHON)

    def provide(self, name: str, program: str) -> None:
        (self.programs / name).unlink(missing_ok=True)
        (self.programs / name).write_text(program, encoding="utf-8")
        (self.programs / name).chmod(0o755)

    def start(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.asked.write_bytes(b"")
        environment = {"PATH": str(self.programs), "ASKED": str(self.asked), "CDPATH": "/", **variables}
        return subprocess.run(
            [self.limner / "start.sh", *arguments], env=environment, cwd="/", capture_output=True, encoding="utf-8"
        )

    @property
    def commands(self) -> list[str]:
        return self.asked.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def card(answer: str) -> str:
    return f'#!/bin/sh\n[ "$1" = --query-gpu=compute_cap ] && printf "{answer}"\n'


@pytest.mark.parametrize(
    ("programs", "index"),
    [
        ({}, f"{PYTORCH}/cpu"),
        ({"nvidia-smi": card(r"8.6\n")}, f"{PYTORCH}/cu128"),
        ({"nvidia-smi": card(r"12.0\n8.6\n")}, f"{PYTORCH}/cu128"),
        ({"nvidia-smi": card(r"7.0\n")}, f"{PYTORCH}/cu126"),
        ({"nvidia-smi": "#!/bin/sh\nexit 9"}, f"{PYTORCH}/cpu"),
        ({"uname": "#!/bin/sh\necho Darwin"}, "https://pypi.org/simple"),
    ],
    ids=["no card", "ampere", "two cards", "volta", "no driver", "mac"],
)
def test_the_first_start_installs_the_torch_of_the_machine(
    machine: Machine, programs: dict[str, str], index: str
) -> None:
    for name, program in programs.items():
        machine.provide(name, program)
    done = machine.start("--port", "8000")
    assert (done.returncode, done.stderr) == (0, "")
    pip = "-m pip install --disable-pip-version-check"
    assert machine.commands == [
        "-m venv .venv", f"{pip} --index-url {index} torch>=2.6", f"{pip} -e .", "app.py --port 8000"
    ]  # fmt: skip
    assert machine.start().returncode == 0
    assert machine.commands == ["app.py"]
    with (machine.limner / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("# an update\n")
    machine.start(LIMNER_TORCH_INDEX="https://mirror.example/simple")
    assert f"{pip} --index-url https://mirror.example/simple torch>=2.6" in machine.commands
    assert "-m venv .venv" not in machine.commands


def test_an_old_python_is_said_and_nothing_is_installed(machine: Machine) -> None:
    done = machine.start(TOO_OLD="1")
    assert done.returncode == 2
    assert done.stderr == "Limner needs Python 3.11 or newer: https://www.python.org/downloads/\n"
    assert machine.commands == []


def test_an_installation_that_broke_off_is_done_again(machine: Machine) -> None:
    machine.provide("python3", PYTHON + '[ "$2" = pip ] && exit 3\nexit 0\n')
    assert machine.start().returncode == 3
    assert not (machine.limner / ".venv" / "installed.toml").exists()


def test_the_script_for_windows_is_sound() -> None:
    """What can be checked without Windows: line ends, labels, quotes, blocks, and commands inside `for /f`."""
    lines = BATCH.split("\r\n")
    assert "\n" not in "".join(lines)
    assert set(re.findall(r"goto (\w+)", BATCH)) <= {line[1:] for line in lines if line.startswith(":")}
    in_block = False
    for line in lines:
        code = re.sub(r'"[^"]*"', "", line)
        assert '"' not in code, f"an open quotation mark: {line}"
        assert "%~dp0" not in code, "a folder may have spaces in its name"
        assert not re.search(r"\bset (?!/)\w", code), "a space before && would become part of the value"
        assert not (in_block and re.search(r"(?<!%)%\w+%", line)), "a block is expanded before its first line runs"
        if line.startswith("for /f"):
            assert not re.search(r"(?<!\^)[=,;]", line.split("'")[1]), "for /f takes these for spaces"
        in_block = line.endswith("(") or (in_block and line != ")")
    assert not in_block
    assert "delayedexpansion" not in BATCH, "an exclamation mark in a path would be lost"


def test_all_ways_to_install_take_the_same_builds_of_torch() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    (index,) = project["tool"]["uv"]["index"]
    assert index["explicit"], "other packages come from PyPI"
    assert "torch>=2.6" in project["project"]["dependencies"]
    assert project["tool"]["uv"]["sources"]["torch"]["index"] == index["name"]
    marker = Marker(project["tool"]["uv"]["sources"]["torch"]["marker"])
    assert [marker.evaluate({"sys_platform": name}) for name in ("linux", "win32", "darwin")] == [True, True, False]
    texts = [(CHECKOUT / name).read_text(encoding="utf-8") for name in ("start.sh", "start.bat", "README.md")]
    for text in texts:
        assert set(re.findall(r"\bcu\d{3}\b", text)) == {index["url"].rpartition("/")[2], "cu126"}
    assert index["url"] in (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    text = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_the_image_is_built_by_sound_commands_and_runs_as_a_user_without_rights() -> None:
    steps = instructions()
    for name, code in steps:
        if name == "RUN":
            assert subprocess.run(["bash", "-n", "-c", code], capture_output=True).stderr == b""
            for program in re.findall(r"(?:^|&&)\s*([\w/-]+)", code):
                assert program in {"apt-get", "rm", "python3", "/opt/limner/bin/pip", "useradd", "install"}
    names = [name for name, _ in steps]
    assert names[-5:] == ["USER", "ENV", "VOLUME", "EXPOSE", "CMD"], "all after USER is without rights"
    assert dict(steps)["USER"] == "limner"
    assert "LIMNER_HOME=/data" in dict(steps)["ENV"]
    assert dict(steps)["CMD"] == '["limner", "page", "--listen"]', "which needs a password"


@pytest.mark.skipif(sys.platform != "linux", reason="the image is one of Linux")
def test_what_the_image_installs_is_in_its_context(tmp_path: Path) -> None:
    ignored = (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for needed in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "trainer", "ui"):
        assert needed not in ignored
    assert "!datasets/example-character" in ignored, "the package brings the examples along"
    for private in ("outputs", "models", "people", "people.toml", ".git", "datasets/*"):
        assert private in ignored
    assert os.access(CHECKOUT / "start.sh", os.X_OK)
