"""Addresses of machines, and a server of a node that nobody calls any more."""

import subprocess
import sys
from pathlib import Path

import pytest

from limner_extensions.cluster import node_server
from limner_extensions.cluster.ssh_machine import Address
from tests.conftest import CHECKOUT
from trainer.errors import UserError


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
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=CHECKOUT, env={"LIMNER_HOME": str(home), "PATH": ""},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_a_node_whose_relay_is_silent_or_sends_nonsense_ends(tmp_path: Path) -> None:
    """Silent as after a cable was pulled: no byte comes, and no end."""
    with serve(0.5, tmp_path) as server:
        assert server.wait(60) == 1
        assert server.stdout
        assert server.stdout.read() == node_server.GREETING
    for nonsense in (b"", b"GET / HTTP/1.1\r\n\r\n" * 10):
        with serve(60, tmp_path) as server:
            _, errors = server.communicate(nonsense, timeout=60)
            assert (server.returncode, errors) == (0, b"")
    assert not list(tmp_path.glob("outputs/.cluster/runs/*/"))
