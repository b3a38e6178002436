"""The warm process behind the try-out tab: started on first use, one picture at a time, restarted when it dies.

Requests and answers are JSON lines over pipes; `trainer.sampling.server` is the other end. When this process ends, by
whatever way, the painter sees the end of its input and ends too.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer import paths
from trainer.config import PictureConfig
from trainer.errors import UserError

IDLE = 600.0  # seconds after which the painter gives its memory back
COMMAND = (sys.executable, "-m", "trainer", "paint")


class Painter:
    """A client of the painter process. Safe to use from several threads: pictures are painted one after the other."""

    def __init__(self, command: Sequence[str] = COMMAND, idle: float = IDLE) -> None:
        self._command = list(command)
        self._idle = idle
        self._turn = threading.Lock()  # held while a picture is painted
        self._life = threading.Lock()  # held while the process is started or ended
        self._process: subprocess.Popen[str] | None = None
        self._timer: threading.Timer | None = None
        self._picture: PictureConfig | None = None  # that is being painted
        self.given_up = 0  # how often `give_up` was called: who paints several pictures looks whether it rose

    def warm(self) -> None:
        """Start the process if there is none, without waiting until it is ready."""
        with self._life:
            if self._process is None or self._process.poll() is not None:
                if self._process is not None:
                    _bury(self._process)
                paths.outputs().mkdir(parents=True, exist_ok=True)
                with (paths.outputs() / ".painter.log").open("wb") as log:
                    self._process = subprocess.Popen(  # an argument list, no shell
                        self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                        cwd=paths.CODE, text=True, encoding="utf-8",
                    )  # fmt: skip
        self._rest()

    def paint(self, picture: PictureConfig) -> Iterator[tuple[int, int]]:
        """Paint a picture to `picture.out`; yields (steps done, steps) as it goes, (0, steps) at once.

        Raises:
            UserError: what the painter refused, or that it died.
        """
        with self._turn:
            self._picture = picture
            process, finished = None, False
            try:
                yield 0, picture.steps
                self.warm()
                process = self._process
                if process is None:
                    raise UserError("The painting was given up.", "Try again.")
                _say(process, picture)
                for answer in _answers(process):
                    if "progress" in answer:
                        yield int(answer["progress"]), int(answer["of"])
                    elif "done" in answer or "error" in answer:
                        finished = True
                        if "error" in answer:
                            raise UserError(str(answer["error"]), str(answer.get("remedy", "")))
                        return
                finished = True
                self._forget(process)
                raise UserError("The painting was given up.", "Make the picture again; training comes first.")
            finally:
                if process is not None and not finished:
                    # The page went away, or gave it up: the next request must not read this one's answers.
                    _given_up(picture).touch()
                    _drain(process)
                self._picture = None
                _given_up(picture).unlink(missing_ok=True)
                self._rest()

    def give_up(self) -> None:
        """Let go of the picture that is being painted, and of what was to follow it."""
        self.given_up += 1
        if self._picture:
            _given_up(self._picture).touch()

    def close(self) -> None:
        """End the process, also in the middle of a picture."""
        with self._life:
            process, self._process = self._process, None
            if self._timer:
                self._timer.cancel()
        if process is not None:
            process.kill()
            _bury(process)

    def _forget(self, process: subprocess.Popen[str]) -> None:
        """Let go of a process that ended by itself."""
        with self._life:
            if self._process is process:
                self._process = None
        _bury(process)

    def _rest(self) -> None:
        """Begin anew to wait for the end of the idle time."""
        with self._life:
            if self._timer:
                self._timer.cancel()
            self._timer = threading.Timer(self._idle, self._close_if_idle)
            self._timer.daemon = True
            self._timer.start()

    def _close_if_idle(self) -> None:
        if self._turn.acquire(blocking=False):
            try:
                self.close()
            finally:
                self._turn.release()


def _given_up(picture: PictureConfig) -> Path:
    """The file by which the painter is told so; see `trainer.sampling.server.given_up`."""
    return Path(picture.out).with_suffix(".given-up")


def _say(process: subprocess.Popen[str], picture: PictureConfig) -> None:
    assert process.stdin  # a pipe
    try:
        process.stdin.write(picture.model_dump_json() + "\n")
        process.stdin.flush()
    except (BrokenPipeError, ValueError, OSError):
        pass  # it is dead: the end of its answers tells so


def _bury(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a process that is ending, and close our ends of its pipes."""
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what was written to it last may not go out any more
            if pipe:
                pipe.close()


def _answers(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout  # a pipe
    while True:
        try:
            line = process.stdout.readline()
        except ValueError:  # closed meanwhile
            return
        if not line:
            return
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(answer, dict):
            yield answer


def _drain(process: subprocess.Popen[str]) -> None:
    for answer in _answers(process):
        if "done" in answer or "error" in answer:
            return
