"""What a model or file from a stranger would try if it could run code, in a process that is confined; see `main`."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[None]:
    """Have a program of this machine listen on sockets in a folder, which a process that is confined must not reach."""
    with socket.socket(socket.AF_UNIX) as program, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        program.bind(str(folder / "socket"))
        program.listen()
        datagrams.bind(str(folder / "datagrams"))
        yield


def _link(family: int, kind: int, use: Callable[[socket.socket], object]) -> Callable[[], object]:
    def attempt() -> None:
        with socket.socket(family, kind) as link:
            use(link)

    return attempt


def _attempts(own: Path, other: Path, port: int) -> dict[str, Callable[[], object]]:
    victim, datagrams, here = other / "victim", str(other / "datagrams"), ("127.0.0.1", port)
    unix, stream, datagram = socket.AF_UNIX, socket.SOCK_STREAM, socket.SOCK_DGRAM
    echo = ["/bin/sh", "-c", f'echo x > "{other}/by-shell"']
    return {
        "create a file": lambda: (other / "new").write_text("x", encoding="utf-8"),
        "write to a file": lambda: victim.write_text("x", encoding="utf-8"),
        "append to a file": lambda: victim.open("a"),
        "truncate a file": lambda: os.truncate(victim, 0),
        "remove a file": victim.unlink,
        "rename a file": lambda: victim.rename(other / "renamed"),
        "make a folder": lambda: (other / "folder").mkdir(),
        "make a link to a file": lambda: (other / "link").symlink_to(victim),
        "move a file into its own folder": lambda: victim.rename(own / "stolen"),
        "link a file into its own folder": lambda: os.link(victim, own / "linked"),
        "write through a link": lambda: _through_a_link(own, victim),
        "change the mode of a file": lambda: victim.chmod(0o777),
        "change the owner of a file": lambda: os.chown(victim, 1, 1),
        "set an attribute of a file": lambda: os.setxattr(victim, "user.x", b"x"),
        "write by another program": lambda: subprocess.run(echo, check=True, capture_output=True),
        "write to the home folder": lambda: Path("~/.limner-attack").expanduser().write_text("x", encoding="utf-8"),
        "write to a temporary file of the system": lambda: Path("/tmp/limner-attack").write_text("x", encoding="utf-8"),
        "write to the memory of the parent": lambda: open(f"/proc/{os.getppid()}/mem", "r+b").close(),
        "end the parent": lambda: os.kill(os.getppid(), 9),
        "connect": _link(socket.AF_INET, stream, lambda link: link.connect(here)),
        "connect by IPv6": _link(socket.AF_INET6, stream, lambda link: link.connect(("::1", port))),
        "send a datagram": _link(socket.AF_INET, datagram, lambda link: link.connect(here)),
        "listen": _link(socket.AF_INET, stream, lambda link: link.bind(("127.0.0.1", 0))),
        "connect to a program of this machine": _link(unix, stream, lambda link: link.connect(str(other / "socket"))),
        "send to a program of this machine": _link(unix, datagram, lambda link: link.sendto(b"x", datagrams)),
        "send to it in another way": _link(unix, datagram, lambda link: link.sendmsg([b"x"], [], 0, datagrams)),
        "change the network of this machine": _link(socket.AF_NETLINK, socket.SOCK_RAW, socket.socket.fileno),
    }


def _through_a_link(own: Path, victim: Path) -> None:
    (own / "a-link").symlink_to(victim)
    (own / "a-link").write_text("x", encoding="utf-8")


def attempt_all(own: Path, other: Path, port: int) -> str:
    """Try everything; return the names of what succeeded, as JSON."""
    succeeded = []
    for name, attempt in _attempts(own, other, port).items():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            attempt()
            succeeded.append(name)
    return json.dumps(succeeded)


def main() -> None:
    """Print what succeeded, then do what a confined process may do; an error ends it."""
    own, other, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    print(attempt_all(own, other, port))
    (own / "folder").mkdir()
    (own / "folder" / "result").write_text("written")
    (own / "folder" / "result").rename(own / "folder" / "renamed")
    Path(os.devnull).write_text("x", encoding="utf-8")
    left, right = socket.socketpair()
    left.send(b"x")
    assert right.recv(1) == b"x"
    left.close(), right.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:  # as CUDA has one
        listener.bind(f"\0limner-{os.getpid()}")
        listener.listen()
