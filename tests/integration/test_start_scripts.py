"""What people double-click or build: the start scripts, what they install, the Dockerfile, and where uv gets torch.

The packages are stand-ins of a few bytes, in an index on this machine; Python, its environments and pip are real.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from scripts import install
from tests import package_index
from tests.conftest import CHECKOUT, free_port
from tests.package_index import Index
from trainer.machine import nvidia
from ui import launch

BATCH = (CHECKOUT / "start.bat").read_bytes().decode("ascii")
TORCH = "2.13.0"  # as in the lock file of the copy
PROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = r"""import pathlib
from package_index import wheel
def build_editable(folder, settings=None, metadata=None):
    command = b"import os, sys\ndef main() -> None:\n    print('command', *sys.argv[1:], os.getcwd())\n"
    scripts = b"[console_scripts]\nlimner = command_of_limner:main\n"
    files = {"command_of_limner.py": command, "limner-1.dist-info/entry_points.txt": scripts}
    pathlib.Path(folder, "limner-1-py3-none-any.whl").write_bytes(wheel("limner", "1", files))
    return "limner-1-py3-none-any.whl"
"""
APP = """import sys, helper, torch.version
print("page", *sys.argv[1:], torch.version.__version__)
"""


class Machine:
    """A machine with a copy of Limner in a folder with a space and an umlaut in its name, and a path of its own."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.index, self.folder = index, folder
        self.limner, self.programs = folder / "My Läb", folder / "bin"
        for part in ("scripts", "trainer/machine"):
            (self.limner / part).mkdir(parents=True)
        self.programs.mkdir()
        packages = (path for part in ("trainer", "trainer/machine") for path in CHECKOUT.glob(f"{part}/*.py"))
        for name in ("start.sh", "scripts/install.py", *(path.relative_to(CHECKOUT) for path in packages)):
            shutil.copy(CHECKOUT / name, self.limner / name)
        self.write("pyproject.toml", PROJECT)
        self.write("backend.py", BACKEND)
        shutil.copy(CHECKOUT / "tests" / "package_index.py", self.limner)
        self.write("app.py", APP)
        self.point_at(f"{index.url}/whl/")
        for name in ("bash", "sh", "dirname", "sleep"):
            (self.programs / name).symlink_to(str(shutil.which(name)))
        (self.programs / "python3").symlink_to(Path(sys.executable).resolve())
        for build, cuda in (("cpu", None), ("cu126", "12.6"), ("cu130", "13.0")):
            offer_torch(index, f"/whl/{build}", f"{TORCH}+{build}", cuda)
        offer_torch(index, "/simple", TORCH, "13.0")
        digest = index.offer("/simple", "helper", "1.5", {"helper.py": b""})
        index.offer("/simple", "helper", "1.6", {"helper.py": b""})  # which the lock file does not name
        self.lock(digest)

    def lock(self, digest: str) -> None:
        pins = (f"torch=={TORCH}", "nvidia-blas==1 ; sys_platform == 'linux'", "helper==1.5")
        self.write("requirements.lock", "".join(f"{pin} \\\n    --hash=sha256:{digest}\n" for pin in pins))

    def write(self, name: str, text: str) -> None:
        (self.limner / name).write_text(text, encoding="utf-8")

    def point_at(self, url: str) -> None:
        """Let PyTorch's index be there."""
        text = (CHECKOUT / "trainer" / "machine" / "nvidia.py").read_text(encoding="utf-8")
        self.write("trainer/machine/nvidia.py", text.replace(nvidia.INDEX, url))

    def provide(self, name: str, program: str) -> None:
        (self.programs / name).unlink(missing_ok=True)
        (self.programs / name).write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
        (self.programs / name).chmod(0o755)

    def start(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run start.sh as a user of this machine, with a pip that has no settings but the address of PyPI."""
        self.index.requests.clear()
        own = {"PATH": str(self.programs), "HOME": str(self.folder), "CDPATH": "/", "PYTHONDONTWRITEBYTECODE": "1"}
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{self.index.url}/simple", "PIP_RETRIES": "0"}
        command, env = [self.limner / "start.sh", *arguments], {**own, **pip, **variables}
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
        return subprocess.run(command, env=env, cwd="/", **out)

    def downloads(self) -> list[str]:
        return [unquote(path).rpartition("/")[2] for path in self.index.requests if path.startswith("/files/")]


def offer_torch(index: Index, folder: str, version: str, cuda: str | None) -> None:
    text = f"__version__ = {version!r}\ncuda: str | None = {cuda!r}\n"
    index.offer(folder, "torch", version, {"torch/__init__.py": b"", "torch/version.py": text.encode()})


def card(driver: str, capability: str) -> str:
    return f'[ "$1" = --query-gpu=driver_version,compute_cap,name ] && echo "{driver}, {capability}, A Card"'


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with package_index.serving() as index:
        yield Machine(tmp_path, index)


def last(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_starts_say_why_not_then_install_and_notice_an_update(machine: Machine) -> None:
    refuse_to_install(machine)
    first = machine.start("--port", "8000")
    assert (first.returncode, last(first)) == (0, f"page --port 8000 {TORCH}+cpu"), first.stdout
    second = machine.start()
    assert (second.stdout, machine.index.requests) == (f"page {TORCH}+cpu\n", [])
    command = machine.start("train", "mira.toml", "--run", "a b")
    assert command.stdout == "command train mira.toml --run a b /\n", "from the folder where the user is"

    machine.provide("nvidia-smi", card("560.35", "8.6"))
    later = machine.start()
    assert "The installed torch does not use A Card." in later.stdout
    assert (last(later), machine.downloads()) == (f"page {TORCH}+cu126", [f"torch-{TORCH}+cu126-py3-none-any.whl"])
    assert machine.start().stdout == f"page {TORCH}+cu126\n"

    machine.provide("nvidia-smi", card("590.10", "12.0"))
    machine.index.broken_at = 100
    stays = machine.start()
    assert "Limner starts with the torch that is installed.\n" in stays.stdout
    assert last(stays) == f"page {TORCH}+cu126"
    machine.index.broken_at = None
    assert last(machine.start()) == f"page {TORCH}+cu130"

    machine.lock(machine.index.offer("/simple", "helper", "1.5", {"helper.py": b"# other bytes"}))
    assert machine.start().stdout.endswith(f"Successfully installed limner-1\npage {TORCH}+cu130\n"), "an update"


def refuse_to_install(machine: Machine) -> None:
    own = f"{machine.index.url}/own"  # has no torch
    machine.index.pages["/own/torch/"] = []
    missing = machine.start(LIMNER_TORCH_INDEX=own)
    assert re.search(r"\n127\.0\.0\.1 has no torch>=2\.6 for Python 3\.\d+ on \w+ \w+\. Name an index", missing.stdout)

    machine.index.broken_at = 100
    broken = machine.start()
    assert "\nThe download from 127.0.0.1 broke off. Run ./start.sh again: files that have arrived" in broken.stdout
    machine.index.broken_at = None

    closed = f"http://127.0.0.1:{free_port()}"
    machine.point_at(f"{closed}/whl/")
    offline = machine.start(PIP_INDEX_URL=f"{closed}/simple")
    assert "\nThere is no connection to 127.0.0.1. Check the network" in offline.stdout

    machine.index.is_proxy = True
    through = {"http_proxy": machine.index.url.replace("//", "//me:secret@"), "PIP_TRUSTED_HOST": "packages.example"}
    refused = machine.start(PIP_INDEX_URL="http://packages.example/simple", **through)
    assert "\nThe proxy 127.0.0.1 does not lead to packages.example. Check it in HTTPS_PROXY" in refused.stdout
    assert "secret" not in refused.stdout
    machine.index.is_proxy = False
    machine.point_at(f"{machine.index.url}/whl/")
    file = machine.limner / "requirements.lock"
    lock = file.read_text(encoding="utf-8")
    machine.lock("0" * 64)
    other = machine.start()
    assert machine.downloads() == [f"torch-{TORCH}+cpu-py3-none-any.whl", "helper-1.5-py3-none-any.whl"]
    assert "\n127.0.0.1 delivers other files than those that Limner was tested with." in other.stdout
    file.write_text(lock, encoding="utf-8")
    for done in (other, missing, broken, offline, refused):
        assert (done.returncode, "page" in done.stdout, "Traceback" in done.stdout) == (1, False, False), done.stdout


def test_a_python_that_cannot_make_environments_is_said(machine: Machine) -> None:
    """As Debian delivers it: without ensurepip and pip, which are in another package."""
    python, here = str(Path(sys.executable).resolve()), "{}.{}".format(*sys.version_info[:2])
    program = f"import runpy, sys; sys.executable = {str(machine.programs / 'python3')!r}; "
    program += "runpy.run_path('scripts/install.py', run_name='__main__')"
    lacks = '"-c import ensurepip"|"-c import pip"|-m*) exit 1;;'
    machine.provide("python3", f'case "$*" in {lacks} -c*) exec {python} "$@";; esac; exec {python} -c "{program}"')
    machine.provide("apt-get", "exit 0")
    done = machine.start()
    assert done.returncode == 1
    assert f"its package python3-venv is missing. Install it with sudo apt install python{here}-venv" in done.stdout


@pytest.mark.nightly
def test_a_python_that_does_not_fit_is_said_or_replaced(machine: Machine) -> None:
    """Python and uv are stand-ins: the one says that it is too old, the other makes environments as `venv` does."""
    python = str(Path(sys.executable).resolve())
    old = f"import runpy, sys; sys.version_info = (3, 10, 12, 'final', 0); sys.argv[:] = {['scripts/install.py']!r}; "
    old += "runpy.run_path('scripts/install.py', run_name='__main__')"
    is_asked = f'*"import sys, "*) exit 1;; -c*) exec {python} "$@";; -m*) exit 1;;'
    machine.provide("python3", f'case "$*" in {is_asked} esac; exec {python} -c "{old}"')
    done = machine.start()
    assert done.returncode == 1
    assert "Limner needs Python 3.11 to 3.14, and this one is 3.10. Get it from https://www.python.org" in done.stdout
    assert "or install uv (https://docs.astral.sh/uv/), which brings one. Then run ./start.sh again." in done.stdout
    made = f'[ "$1 $5" = "venv 3.13" ] && exec {python} -m venv "$6"; shift 6; exec'
    machine.provide("uv", f'{made} {machine.programs}/python3 "$@"')
    done = machine.start()
    assert "Making an environment of Python 3.13 with uv.\n" in done.stdout
    assert last(done) == f"page {TORCH}+cpu"
    machine.provide("uv", f'{made} {python} "$@"')
    (machine.programs / "python3").unlink()
    shutil.rmtree(machine.limner / ".venv")
    assert last(machine.start()) == f"page {TORCH}+cpu", "uv alone is enough"
    (machine.programs / "uv").unlink()
    shutil.rmtree(machine.limner / ".venv")
    done = machine.start()
    assert (done.returncode, done.stdout[:34]) == (2, "Limner needs Python 3.11 to 3.14: ")


def test_pythons_that_are_accepted_are_the_same_everywhere() -> None:
    ast.parse((CHECKOUT / "scripts" / "install.py").read_text(encoding="utf-8"), feature_version=(3, 8))  # to say so
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    fitting = [minor for minor in range(6, 30) if f"3.{minor}" in SpecifierSet(project["requires-python"])]
    assert [(3, fitting[0]), (3, fitting[-1])] == [install.OLDEST, install.NEWEST]
    bounds = f"(3, {fitting[0]}) <= sys.version_info < (3, {fitting[-1] + 1})"
    for text in ((CHECKOUT / "start.sh").read_text(encoding="utf-8"), BATCH):
        assert bounds in text
        (tried,) = re.findall(r"(?m)^ *for (?:candidate|%%v) in (.*3\.11.*)$", text)
        assert sorted(int(minor) for minor in re.findall(r"3\.(\d+)", tried.partition(" do ")[0])) == fitting
        assert f"Limner needs Python 3.{fitting[0]} to 3.{fitting[-1]}" in text
    for minor in fitting:
        assert f"Programming Language :: Python :: 3.{minor}" in project["classifiers"]


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
    assert index["url"] == nvidia.INDEX + nvidia.BUILD
    for name in ("docs/install.md", "Dockerfile"):
        text = (CHECKOUT / name).read_text(encoding="utf-8")
        assert set(re.findall(r"\bcu\d{3}\b", text)) == {nvidia.BUILD, nvidia.OLD_BUILD}


def test_the_image_has_sound_commands_and_one_volume() -> None:
    text = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [line.partition(" ")[::2] for line in text.splitlines() if line and not line.startswith("#")]
    for name, code in steps:
        if name == "RUN":
            assert subprocess.run(["bash", "-n", "-c", code], capture_output=True).stderr == b""
    names, last = [name for name, _ in steps], dict(steps)
    assert names[-6:] == ["WORKDIR", "USER", "ENV", "VOLUME", "EXPOSE", "CMD"], "all after USER is without rights"
    assert (last["USER"], last["VOLUME"], last["ARG"]) == ("limner", "/data", f"BUILD={nvidia.BUILD}")
    variables = dict(part.split("=", 1) for part in last["ENV"].split())
    assert variables["LIMNER_HOME"] == variables["HOME"] == "/data", "models, and what the hub's library keeps"


def test_each_of_several_people_has_a_container_behind_caddy() -> None:
    """The example of docs/several-people.md: what is said in several places of it is the same."""
    composed = yaml.safe_load((CHECKOUT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    caddyfile = (CHECKOUT / "docker" / "Caddyfile").read_text(encoding="utf-8")
    image = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
    caddy, *people = sorted(composed["services"], key=lambda name: name != "caddy")
    services = composed["services"]
    assert services[caddy]["networks"] == people == list(composed["networks"])
    sites = re.findall(r"(?m)^(\S+) {\n\tbasic_auth {\n\t\t(\w+) .*\n\t}\n\treverse_proxy (\w+):7860 ", caddyfile)
    assert sites == [(f"{name}.limner.example", name, name) for name in people]
    for name in people:
        service = services[name]
        options = launch.parse_options(service["command"][2:])
        assert service["command"][:2] == ["limner", "page"]
        assert (options.host, options.host_name) == ("0.0.0.0", [f"{name}.limner.example"])
        assert (service["networks"], "ports" in service) == ([name], False), "only Caddy reaches it"
        places = dict(volume.split(":")[:2][::-1] for volume in service["volumes"])
        assert (places["/data"], service["build"]) == (name, "..")
        assert places["/shared/outputs"] in composed["volumes"].keys() - {*people}
        shared = service["environment"]["LIMNER_SHARED"]
        assert all(place in image for place in (f" {shared}/models", f" {shared}/outputs")), "they belong to its user"


@pytest.mark.nightly
def test_a_half_made_environment_is_made_again_and_an_own_index_asked_alone(machine: Machine) -> None:
    machine.provide("nvidia-smi", card("590.10", "12.0"))
    offer_torch(machine.index, "/own", "2.20", None)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", machine.limner / ".venv"], check=True)
    done = machine.start(LIMNER_TORCH_INDEX=f"{machine.index.url}/own")
    assert "The environment in .venv is not complete. Making it again.\n" in done.stdout
    assert last(done) == "page 2.20"


def test_the_ranges_admit_the_locked_versions() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", install.LOCK.read_text(encoding="utf-8")))
    for text in project["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name]), text
