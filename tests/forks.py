"""Servers, workers and painters under test, without the seconds that their imports take.

One process imports all there is to import and forks for each of them. What a test or a server starts is a small program
in the place of Python: it hands over its arguments, environment and open files, and lives as long as the fork does;
whichever of the two ends first, the other ends with it. For any other command it becomes Python itself.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests.conftest import CHECKOUT
from tests.speeds import MEASURED

NOT_FORKED = ("download", "publish")  # what they need to know of the environment is read as libraries are imported
KILLED = 137
PROGRAM = """#!{python} -SE
import json, os, signal, socket, sys
arguments = sys.argv[1:]
known = arguments[:1] == ["app.py"] or arguments[:2] == ["-m", "trainer"] and arguments[2] not in {not_forked}
known = known or arguments[:2] == ["-m", "trainer.confinement"] and "trainer.captioning.models" in arguments
if not known or os.environ.get("LANGUAGE") != "en":
    os.execv({python!r}, [{python!r}, *arguments])
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
told = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [len(told).to_bytes(8, "big")], [0, 1, 2])
link.sendall(told)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: link.send(bytes([number])))
os.close(0), os.close(1)
code = int(link.recv(8).decode() or {killed})
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def unmeasured() -> dict[str, str]:
    """Return the environment of this process, without what would have another one measure its coverage.

    That makes a server half as fast, and the functions that it runs have tests without a browser.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(MEASURED)}


@contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """Give the program to start in the place of Python; the first process that asks starts the one that forks.

    It ends when all that asked have closed the pipe by which they keep it.
    """
    address, program, pipe = folder / "forks", folder / "python", folder / "keep"
    process = None
    with FileLock(folder / "lock"):
        try:
            keep = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody has asked yet, or all that did have gone
            address.unlink(missing_ok=True)
            pipe.unlink(missing_ok=True)
            os.mkfifo(pipe)
            program.write_text(
                PROGRAM.format(python=sys.executable, not_forked=NOT_FORKED, address=str(address), killed=KILLED)
            )
            program.chmod(0o755)
            process, keep = _start(address, program, pipe)
    try:
        yield program
    finally:
        os.close(keep)
        if process:
            process.wait()


def _start(address: Path, program: Path, pipe: Path) -> tuple[subprocess.Popen[bytes], int]:
    kept = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    keep = os.open(pipe, os.O_WRONLY)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forks", address, program], cwd=CHECKOUT, stdin=kept,
        env={**unmeasured(), "PYTHONPATH": str(CHECKOUT / "tests" / "e2e" / "lookups"), "LIMNER_LOOKUPS": os.devnull},
    )  # fmt: skip
    os.close(kept)
    end = time.monotonic() + 120
    while not address.exists():
        assert process.poll() is None, "the process that forks has ended"
        assert time.monotonic() < end
        time.sleep(0.05)
    return process, keep


def _child(
    link: socket.socket, arguments: list[str], folder: str, environment: dict[str, str], files: list[int]
) -> None:
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 - as long as the process
        for number, mode in enumerate("rww")
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    watching: Any = sys.modules["sitecustomize"]
    watching.LOG = environment.get("LIMNER_LOOKUPS", os.devnull)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    def heed() -> None:
        while number := link.recv(1):
            os.kill(os.getpid(), number[0])
        os._exit(KILLED)

    threading.Thread(target=heed, daemon=True).start()
    from trainer import confinement
    from trainer.cli import commands
    from ui import launch

    code = 1
    try:
        if arguments[1] == "trainer.confinement":
            code = _in_a_single_thread(lambda: confinement.main(arguments[2:]))
            return
        code = launch.main(arguments[1:]) if arguments[0] == "app.py" else commands.main(arguments[2:])
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def _in_a_single_thread(run: Callable[[], None]) -> int:
    """Run a function in a fork, which has no thread but the one that forks; return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _serve(address: str, program: str) -> None:
    import diffusers
    import torch

    sys.executable = program  # which the page remembers as it is imported
    import trainer.cli.commands  # noqa: F401 - for the forks
    import trainer.sampling.server
    import trainer.train
    import trainer.training.gauge
    import ui.page  # noqa: F401 - for the forks

    diffusers.StableDiffusionPipeline, trainer.training.gauge, trainer.sampling.server, trainer.train  # noqa: B018 - loaded when named
    torch.set_num_threads(1)  # threads would not live on in a fork
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    os.rename(address + ".new", address)
    links: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listener:
                link, _ = listener.accept()
                head, files, _, _ = socket.recv_fds(link, 8, 3)
                told = b""
                while len(told) < int.from_bytes(head, "big"):
                    told += link.recv(2**16)
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    listener.close()
                    _child(link, *json.loads(told), files=list(files))
                for file in files:
                    os.close(file)
                waiter = os.pidfd_open(pid)
                links[waiter] = pid, link
                selector.register(waiter, selectors.EVENT_READ)
            else:
                waiter = key.fd
                pid, link = links.pop(waiter)
                selector.unregister(waiter)
                os.close(waiter)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(OSError):  # the program that stood for it was killed
                    link.send(str(code).encode())
                link.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(*sys.argv[1:])
