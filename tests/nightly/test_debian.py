"""A first start on a Debian as it is delivered: its Python cannot make environments until python3-venv is installed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import package_index
from tests.integration.test_start_scripts import TORCH, Machine, last

CAN = shutil.which("debootstrap") and os.geteuid() == 0
pytestmark = [pytest.mark.nightly, pytest.mark.skipif(not CAN, reason="needs debootstrap and root")]
VARIABLES = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}


class Debian:
    """A Debian 13 in a folder, with a copy of Limner."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "debian"
        options = ["--variant=minbase", "--include=python3,ca-certificates"]
        subprocess.run(["debootstrap", *options, "trixie", str(self.root)], check=True, stdout=subprocess.DEVNULL)
        for file in ("/etc/resolv.conf", "/etc/hosts"):
            shutil.copy(file, self.root / file[1:])

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["chroot", str(self.root), *command],
            env={**VARIABLES, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with package_index.serving() as index:
        yield Machine(tmp_path, index)


def test_a_missing_python3_venv_is_named(tmp_path: Path, machine: Machine) -> None:
    debian = Debian(tmp_path)
    shutil.copytree(machine.limner, debian.root / "root" / "My Läb")
    script = "/root/My Läb/start.sh"
    pip = {"PIP_INDEX_URL": f"{machine.index.url}/simple", "PIP_RETRIES": "0"}
    half = debian.run("python3", "-m", "venv", "/root/My Läb/.venv")  # as earlier versions left it
    assert (half.returncode, (debian.root / "root" / "My Läb" / ".venv" / "bin").exists()) == (1, True)
    for _ in range(2):
        done = debian.run(script, **pip)
        assert done.returncode == 1
        assert "its package python3-venv is missing. Install it with sudo apt install python3.13-venv" in done.stdout
        assert "No module named pip" not in done.stdout
    for command in (("apt-get", "update"), ("apt-get", "install", "-qy", "--no-install-recommends", "python3-venv")):
        assert debian.run(*command).returncode == 0
    done = debian.run(script, **pip)
    assert (done.returncode, last(done)) == (0, f"page {TORCH}+cpu"), done.stdout
