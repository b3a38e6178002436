"""Machines that are reached through SSH: this one, by a server of OpenSSH, with a home of its own."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from limner_extensions.cluster import node_server
from limner_extensions.cluster.ssh_machine import Address, SshMachine
from tests import faults
from tests.conftest import CHECKOUT, HANG, free_port, wait
from tests.extensions.cluster.test_ray import submit
from tests.extensions.cluster.test_relay import hash_of, make, settings
from tests.integration.runs.test_processes import status
from tests.workers import Workers
from trainer import config, runs, storage
from trainer.errors import UserError
from trainer.runs import events

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
        everything = psutil.process_iter(["cmdline", "environ"])
        return [each for each in everything if (each.info["environ"] or {}).get("TEST_MACHINE") == str(self.home)]


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
    variables = {"LIMNER_HOME": home, "TEST_MACHINE": home, **faults.environment(fault)}
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
            wait(lambda: b"Server listening" in (folder / "sshd.log").read_bytes())
            yield Machine(f"ssh://127.0.0.1:{port}{folder / 'limner'}", home, known_hosts, psutil.Process(server.pid))
        finally:
            server.terminate()
            server.wait()


def _script(path: Path, lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
    path.chmod(0o700)


def never() -> None:
    raise AssertionError("nothing to wait for")


@needs_sshd
@pytest.mark.slow
@pytest.mark.parametrize("waiting", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_run_whose_connection_is_cut_goes_on_there(
    character: Path, tiny_sd: Path, tmp_path: Path, workers: Workers, waiting: int
) -> None:
    """At night another one waits there meanwhile, as the machine has one device, and is stopped."""
    file = tmp_path / "rin.toml"
    storage.write(file, config.dump(settings(str(tiny_sd), steps=9)))
    with machine(tmp_path / "machine", fault="hang@6") as there:
        first = submit(file, there.address)
        wait(lambda: runs.look(first).state.step == 5)
        others = [submit(file, there.address) for _ in range(waiting)]
        wait(lambda: len(list(there.home.glob("outputs/.cluster/runs/*/"))) == 1 + waiting)
        assert [status(other) for other in others] == ["waiting"] * waiting
        command = tmp_path / "machine" / "limner"
        command.write_text(command.read_text().replace("hang@6", ""))
        there.cut()
        for other in others:
            runs.request(other, "stop")
            wait(lambda other=other: status(other) == "stopped")
        wait(lambda: status(first) == "finished")
        wait(lambda: not there.processes)
        assert not list(there.home.glob("outputs/.cluster/runs/*/")), "nothing of the runs stays there"
        assert len(list(there.home.glob("outputs/.cluster/files/*"))) == 2, "the dataset and the base model do"
    state = runs.look(first).state
    assert state.warnings[-1] == "The node of this run was lost; it goes on elsewhere from step 3."
    assert [event.step for event in events.read(first.log)[0] if isinstance(event, events.Started)] == [0, 3]
    undisturbed = make(str(tiny_sd))
    assert workers.work(undisturbed) == 0
    assert hash_of(first) == hash_of(undisturbed)
    assert [(first.folder / preview.file).is_file() for preview in state.previews] == [True] * 4


@needs_sshd
def test_a_machine_that_is_unknown_or_has_no_limner_says_so(tmp_path: Path) -> None:
    with machine(tmp_path / "machine") as there:
        command = tmp_path / "machine" / "limner"
        with pytest.raises(UserError, match=r"127\.0\.0\.1 does not find the command '/nowhere/limner'\."):
            SshMachine(there.address.removesuffix(str(command)) + "/nowhere/limner").place(1, never)
        command.write_text("#!/bin/sh\necho '│ No such command. │' >&2\necho '╰──╯' >&2\nexit 2\n")
        with pytest.raises(UserError, match=r"could not be started on 127\.0\.0\.1: No such command\."):
            SshMachine(there.address).place(1, never)
        there.known_hosts.write_text("")
        with pytest.raises(UserError, match="cannot be reached: Host key verification failed") as refused:
            SshMachine(there.address).place(1, never)
        assert "needs a key" in refused.value.remedy
    with pytest.raises(UserError, match="cannot be reached"):
        SshMachine(there.address).place(1, never)


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("ssh://gpu", Address("gpu")),
        ("ssh://Den_PC.local", Address("Den_PC.local")),
        ("ssh://root@10.1.2.3:2222", Address("10.1.2.3", "root", 2222)),
        ("ssh://gpu/home/me/my limner/limner", Address("gpu", command="/home/me/my limner/limner")),
        ("ssh://gpu/~/limner/.venv/bin/limner", Address("gpu", command="./limner/.venv/bin/limner")),
        ("ssh://me@[fe80::1%eth0]:22/", Address("fe80::1%eth0", "me", 22)),
        ("ssh://[::1]", Address("::1")),
    ],
)
def test_addresses(address: str, parsed: Address) -> None:
    assert Address.parse(address) == parsed


HOSTILE = ["ssh://-oProxyCommand=sh", "ssh://-l@gpu", "ssh://me:secret@gpu", "ssh://gpu name", "ssh:// @gpu"]
WRONG = ["gpu", "ssh://", "ssh://@gpu", "ssh://gpu:port", "ssh://gpu:100000", "ssh://gpu?GPU=1", "ssh://gpu#x"]


@pytest.mark.parametrize("address", [*HOSTILE, *WRONG])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="is not the address of a machine"):
        Address.parse(address)


def test_an_address_is_not_read_by_a_shell_or_as_an_option() -> None:
    words = Address("gpu", "me", 2222, "/opt/it's $(mine)/limner").words
    assert words[-6:] == ["me", "-p", "2222", "--", "gpu", """'/opt/it'"'"'s $(mine)/limner' serve-node"""]


def serve(silence: float, home: Path) -> subprocess.Popen[bytes]:
    program = f"from limner_extensions.cluster import node_server as s; s.SILENCE = {silence}; s.main()"
    command, env = [sys.executable, "-c", program], {"LIMNER_HOME": str(home), "PATH": ""}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, cwd=CHECKOUT, env=env, **pipes)


@pytest.mark.slow
def test_a_node_whose_relay_is_silent_or_sends_nonsense_ends(tmp_path: Path) -> None:
    """Silent as after a cable was pulled: no byte comes, and no end."""
    with serve(0.5, tmp_path) as server:
        assert server.wait(HANG) == 1
        assert server.stdout
        assert server.stdout.read() == node_server.GREETING
    for nonsense in (b"", b"GET / HTTP/1.1\r\n\r\n" * 10):
        with serve(60, tmp_path) as server:
            _, errors = server.communicate(nonsense, timeout=HANG)
            assert (server.returncode, errors) == (0, b"")
    assert not list(tmp_path.glob("outputs/.cluster/runs/*/"))
