"""A machine that is reached through SSH: this one, by a server of OpenSSH, with a home of its own."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import CHECKOUT, free_port

SERVER = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_sshd = pytest.mark.skipif(not (SERVER and shutil.which("ssh")), reason="OpenSSH's server is not installed")


@dataclass
class Machine:
    """Its address, its home, and the files that both ends read."""

    address: str
    home: Path
    known_hosts: Path
    server: psutil.Process

    def cut(self) -> None:
        """Cut all connections, but end nothing that runs there."""
        for process in self.server.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("sshd"):
                    process.kill()

    @property
    def processes(self) -> list[psutil.Process]:
        """What runs there for nodes."""
        return [
            process for process in psutil.process_iter(["cmdline", "environ"])
            if (process.info["environ"] or {}).get("TEST_MACHINE") == str(self.home)
        ]  # fmt: skip


@contextmanager
def machine(folder: Path, fault: str = "") -> Iterator[Machine]:
    """A machine whose runs have a fault; `ssh` finds it until the `with` ends."""
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    known_hosts, home = folder / "known_hosts", folder / "home"
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    known_hosts.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized_keys'}\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\n"
    )
    # A shell may print anything before the command begins.
    variables = {"LIMNER_HOME": home, "TEST_MACHINE": home, "LIMNER_TEST": 1, "LIMNER_FAULT": fault}
    exports = "\n".join(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items())
    exports += "\nexport OMP_NUM_THREADS=1"
    _script(folder / "limner", f'echo welcome\n{exports}\ncd {CHECKOUT}\nexec {sys.executable} -m trainer "$@"')
    options = f"-F none -i {folder / 'user'} -o IdentitiesOnly=yes -o UserKnownHostsFile={known_hosts}"
    _script(folder / "bin" / "ssh", f'exec {shutil.which("ssh")} {options} "$@"')
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    assert SERVER
    command = [SERVER, "-D", "-e", "-f", str(folder / "sshd_config")]
    with pytest.MonkeyPatch.context() as patch, (folder / "sshd.log").open("wb") as log:
        patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for(port)
            yield Machine(f"ssh://127.0.0.1:{port}{folder / 'limner'}", home, known_hosts, psutil.Process(server.pid))
        finally:
            server.terminate()
            server.wait()


def _script(path: Path, lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
    path.chmod(0o700)


def _wait_for(port: int) -> None:
    for _ in range(100):
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError("the server does not listen")
