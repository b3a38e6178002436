"""A machine that is reached through SSH: OpenSSH's client here, `limner serve-node` there, and their pipes between."""

import re
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from subprocess import Popen, TimeoutExpired
from typing import IO, Any, Self, TypeVar, cast

from limner_extensions.cluster.border import clean
from limner_extensions.cluster.node import FAREWELL, About, News, Node, NodeLostError
from limner_extensions.cluster.node_server import GREETING
from limner_extensions.cluster.wire import Wire
from trainer import processes
from trainer.errors import UserError

Answer = TypeVar("Answer", About, News)
SCHEME = "ssh://"
PATIENCE = 600.0  # seconds in which a machine that was lost may come back
CHATTER = 2**16  # bytes that a login shell may print first
MAX_LINE = 2000  # characters of an error there that are read at once
MAX_ERRORS = 2**20  # characters of errors there that are kept
OPTIONS = (
    "-Tax",  # no terminal, no agent and no display for the machine there
    "-oBatchMode=yes",  # nobody is there to type a password
    "-oClearAllForwardings=yes",
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=3",
)
# No part begins with a hyphen, as an option does.
_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>\w[\w.-]*)@)?(?P<host>\w[\w.-]*|\[[\da-fA-F:.]+(?:%\w+)?\])(?::(?P<port>\d{1,5}))?(?P<command>/.*)?"
)
_SSH_FAILED, _NO_COMMAND = 255, (126, 127)  # exit codes of ssh, and of a shell


@dataclass(frozen=True)
class Address:
    """Target of `ssh://USER@HOST:PORT/COMMAND`. The command is that of Limner there."""

    host: str
    user: str = ""
    port: int = 0
    command: str = "limner"

    @classmethod
    def parse(cls, address: str) -> Self:
        """Read an address.

        Raises:
            UserError: it is not one.
        """
        parts = _ADDRESS.fullmatch(address)
        if parts is None:
            raise UserError(
                "{address!r} is not the address of a machine.",
                "Write ssh://USER@HOST:PORT/COMMAND, of which only HOST is needed; keys take the place of passwords.",
                address=address,
            )
        command = (parts["command"] or "").rstrip("/") or "limner"
        if command.startswith("/~/"):  # ssh begins in the home folder, and a shell leaves a quoted ~ as it is
            command = command.replace("/~/", "./", 1)
        return cls(parts["host"].strip("[]"), parts["user"] or "", int(parts["port"] or 0), command)

    @property
    def words(self) -> list[str]:
        """The command that serves a node there."""
        options = [*(["-l", self.user] if self.user else []), *(["-p", str(self.port)] if self.port else [])]
        # The shell there reads the command, hence the quotes.
        return ["ssh", *OPTIONS, *options, "--", self.host, shlex.join([self.command, "serve-node"])]


class SshMachine:
    """One machine; its runs take its devices from each other, and from those that were started there."""

    def __init__(self, address: str) -> None:
        self._address = Address.parse(address)
        self._reached = False

    def place(self, devices: int, wait: Callable[[], None]) -> Node:
        """Return a node on the machine that has devices for a run, calling `wait` again and again until there are.

        Raises:
            UserError: the machine cannot be reached, or has no Limner; or it was lost and has not come back.
            NodeLostError: it was lost as the run waited for its devices.
        """
        node = self._connect(wait)
        try:
            while not node.claim(devices):
                wait()
        except BaseException:
            node.end()
            raise
        return cast(Node, node)

    def _connect(self, wait: Callable[[], None]) -> "_SshNode":
        until = time.monotonic() + (PATIENCE if self._reached else 0)
        while True:
            try:
                node = _SshNode(self._address)
            except UserError:
                if time.monotonic() >= until:
                    raise
                wait()
            else:
                self._reached = True
                return node


class _SshNode:
    """A node at the other end of a connection: calls its methods, and waits for each answer.

    Raises:
        UserError: no connection, or no Limner there.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        try:
            self._ssh: Popen[str] = processes.start(
                address.words, stdin=processes.PIPE, stdout=processes.PIPE, stderr=processes.PIPE
            )
        except FileNotFoundError:
            raise UserError("There is no ssh program here.", "Install OpenSSH's client.") from None
        stdin, stdout, stderr = cast(
            tuple[IO[str], IO[str], IO[str]], (self._ssh.stdin, self._ssh.stdout, self._ssh.stderr)
        )
        self._errors: deque[str] = deque(maxlen=5)
        self._reader = threading.Thread(target=self._log, args=(stderr,), daemon=True)
        self._reader.start()
        self._wire = Wire(cast(Any, stdout).buffer, cast(Any, stdin).buffer)
        if not _skip_to(GREETING, cast(Any, stdout).buffer):
            raise self._why_not()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._call, method)

    def about(self) -> About:
        """As `Node.about`."""
        return _made(About, self._call("about"))

    def news(self, *arguments: object) -> News:
        """As `Node.news`."""
        news = _made(News, self._call("news", *arguments))
        try:
            files = {path: (size, changed) for path, (size, changed) in news.files.items()}
            return replace(news, files=files, requests=frozenset(news.requests))
        except (AttributeError, TypeError, ValueError):
            raise NodeLostError("the node's news are not valid") from None

    def end(self) -> None:
        """End the connection, at which the node there ends."""
        with suppress(OSError):
            cast(IO[str], self._ssh.stdin).close()
        try:
            self._ssh.wait(FAREWELL)
        except TimeoutExpired:
            self._ssh.kill()
            self._ssh.wait()
        self._reader.join()
        for pipe in (self._ssh.stdout, self._ssh.stderr):
            cast(IO[str], pipe).close()

    def _call(self, method: str, *arguments: object, **named: object) -> Any:  # noqa: ANN401 - whatever it answers
        try:
            self._wire.send((method, arguments, named))
            kind, answer = self._wire.receive()
        except (EOFError, OSError) as error:
            raise NodeLostError(self._last_words() or f"the connection to {self._address.host} has ended") from error
        except (TypeError, ValueError) as error:
            raise NodeLostError(f"{self._address.host} answered something that is not a message") from error
        match kind, answer:
            case "answer", _:
                return answer
            case "refused", [str(message), str(remedy)]:
                raise UserError(_shortened(message), _shortened(remedy))
            case _:
                raise NodeLostError(f"something went wrong on {self._address.host}: {_shortened(str(answer))}")

    def _log(self, stderr: IO[str]) -> None:
        room = MAX_ERRORS
        while line := stderr.readline(MAX_LINE):
            if room > 0:
                sys.stderr.write(clean(line))
                sys.stderr.flush()
            room -= len(line)
            if text := line.strip(" │\r\n╭╮╰╯─"):  # a command line may draw a box around what is wrong
                self._errors.append(text)

    def _last_words(self) -> str:
        with suppress(TimeoutExpired):
            self._ssh.wait(FAREWELL)
            self._reader.join()
        return clean(self._errors[-1]) if self._errors else ""

    def _why_not(self) -> UserError:
        cast(IO[str], self._ssh.stdout).close()  # so that a program that prints without end ends
        error, code, host = self._last_words(), self._ssh.poll(), self._address.host
        self.end()
        if code in _NO_COMMAND:
            return UserError(
                "{host} does not find the command {command!r}.",
                "Install Limner there, and name its command, as in ssh://{host}/~/limner/.venv/bin/limner.",
                host=host,
                command=self._address.command,
            )
        if code == _SSH_FAILED:
            return UserError(
                "{host} cannot be reached: {error}.",
                "Check that ssh connects to it by hand without a question: it needs a key, and to know the machine.",
                host=host,
                error=error.rstrip("."),
            )
        return UserError(
            "Limner could not be started on {host}: {error}.",
            "Check that {command} --version says the same there and here.",
            host=host,
            error=error.rstrip(".") or f"exit code {code}",
            command=self._address.command,
        )


def _made(kind: type[Answer], answer: object) -> Answer:
    """Return an answer of a node as the dataclass that it stands for; its values are not checked.

    Raises:
        NodeLostError: it has other fields.
    """
    try:
        return kind(**cast(dict[str, Any], answer))
    except TypeError:
        raise NodeLostError("the node answered something else than was asked") from None


def _shortened(text: str) -> str:
    return clean(text, 500).rstrip(".")


def _skip_to(mark: bytes, stream: IO[bytes]) -> bool:
    """Read up to the end of a mark; tell whether it came."""
    tail = b""
    for _ in range(CHATTER):
        letter = stream.read(1)
        if not letter:
            return False
        tail = (tail + letter)[-len(mark) :]
        if tail == mark:
            return True
    return False
