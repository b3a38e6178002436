"""A confined process that attacks: it writes to its own folder alone, and reaches nothing."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, python
from tests.hostile.attacks import listening
from trainer import confinement

pytestmark = pytest.mark.skipif(sys.platform != "linux" or confinement.caution() != "", reason="this system lacks it")


def attack(tmp_path: Path, command: list[str]) -> list[str]:
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir(exist_ok=True)
    other.mkdir()
    (other / "victim").write_text("untouched")
    with socket.create_server(("127.0.0.1", 0)) as listener, listening(other):
        port = listener.getsockname()[1]
        command, env = [*command, str(own), str(other), str(port)], {**os.environ, "HOME": str(other)}
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True, env=env)
    succeeded: list[str] = json.loads(done.stdout)
    return succeeded


def test_a_confined_process_writes_and_reaches_nothing_else(tmp_path: Path) -> None:
    assert attack(tmp_path, confinement.command(["tests.hostile.attacks"], [tmp_path / "own"])) == []
    assert (tmp_path / "other" / "victim").read_text() == "untouched"
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["datagrams", "socket", "victim"]
    assert (tmp_path / "own" / "folder" / "renamed").read_text() == "written"


HARMLESS = """
from tests.hostile import attacks
attempts = attacks._attempts
attacks._attempts = lambda *places: {name: act for name, act in attempts(*places).items() if name != "end the parent"}
attacks.main()
"""


def test_the_same_attacks_succeed_where_nothing_confines_them(tmp_path: Path) -> None:
    succeeded = attack(tmp_path, [sys.executable, "-c", HARMLESS])
    files = {"create a file", "append to a file", "truncate a file", "write by another program"}
    assert set(succeeded) >= {*files, "write to a temporary file of the system"}
    assert set(succeeded) >= {"connect", "send a datagram", "listen", "connect to a program of this machine"}
    assert set(succeeded) >= {"send to a program of this machine", "send to it in another way"}
    Path("/tmp/limner-attack").unlink()


def test_a_process_with_a_second_thread_is_not_confined_in_part() -> None:
    thread = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    done = python("-c", f"{thread}; from trainer import confinement; confinement.confine([])")
    assert done.returncode
    assert "before it has a second thread" in done.stderr
