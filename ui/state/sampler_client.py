"""Client of the sampler process behind the Try out tab. It starts on first use and handles one image at a time.

Requests and answers are JSON lines over pipes; `trainer.sampling.server` is the other end. However this process ends,
the sampler sees the end of its input and ends too.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer import foreign_text, paths, processes, storage
from trainer.config import PictureConfig
from trainer.errors import UserError

ASKED_EVERY = 0.5  # seconds between the answers to a request that waits for its turn
IDLE = 600.0  # seconds after which the sampler process ends, to free its memory
COMMAND = (sys.executable, "-m", "trainer", "sampler")


class SamplerClient:
    """Client of the sampler process. Safe to use from several threads: images are generated one after the other."""

    def __init__(self, command: Sequence[str] = COMMAND, idle: float = IDLE) -> None:
        self._command = list(command)
        self._idle = idle
        self._turn = threading.Lock()  # held while an image is generated
        self._life = threading.Lock()  # held while the process is started or ended
        self._process: subprocess.Popen[str] | None = None
        self._timer: threading.Timer | None = None
        self._request: PictureConfig | None = None  # being generated
        self.notes: dict[str, list[str]] = {}  # sentences on images that have any, by their files

    def warm(self) -> None:
        """Start the process unless it runs, without waiting until it is ready."""
        with self._life:
            if self._process is None or self._process.poll() is not None:
                if self._process is not None:
                    _reap(self._process)
                paths.outputs().mkdir(parents=True, exist_ok=True)
                with (paths.outputs() / ".painter.log").open("wb") as log:
                    self._process = processes.start(
                        self._command, stdin=processes.PIPE, stdout=processes.PIPE, stderr=log
                    )
        self._restart_timer()

    def generate(self, request: PictureConfig) -> Iterator[tuple[int, int]]:
        """Generate an image into `request.out`; yields (steps done, steps), beginning with (0, steps) while it waits.

        Raises:
            UserError: the sampler refused the request, or it died.
        """
        while not self._turn.acquire(timeout=ASKED_EVERY):
            yield 0, request.steps  # so that the caller can give up
        try:
            yield from self._generate(request)
        finally:
            self._turn.release()

    def _generate(self, request: PictureConfig) -> Iterator[tuple[int, int]]:
        """Generate an image, as `generate` does, in its turn."""
        self._request = request
        process, finished = None, False
        try:
            yield 0, request.steps
            self.warm()
            process = self._process
            if process is None:
                raise UserError("Image generation was interrupted.", "Try again.")
            _send(process, request)
            for answer in _answers(process):
                if "progress" in answer:
                    yield int(answer["progress"]), int(answer["of"])
                elif "error" in answer:
                    finished = True
                    raise UserError(str(answer["error"]), str(answer.get("remedy", "")))
                elif "done" in answer:
                    finished = True
                    if notes := answer.get("notes"):
                        self.notes[request.out] = notes
                    return
            finished = True
            self._forget(process)
            raise UserError(
                "Image generation was interrupted.", "Generate the image again; training runs have priority."
            )
        finally:
            if process is not None and not finished:
                # The page closed, or it canceled: the next request must not read the answers to this one.
                _cancel_file(request).touch()
                _drain(process)
            self._request = None
            storage.remove(_cancel_file(request))
            self._restart_timer()

    def cancel(self, request: PictureConfig) -> None:
        """Cancel the image of a request if it is being generated now, rather than that of another page."""
        if self._request is request:
            _cancel_file(request).touch()

    def close(self) -> None:
        """End the process, even in the middle of an image."""
        with self._life:
            process, self._process = self._process, None
            if self._timer:
                self._timer.cancel()
        if process is not None:
            process.kill()
            _reap(process)

    def _forget(self, process: subprocess.Popen[str]) -> None:
        """Let go of a process that ended by itself."""
        with self._life:
            if self._process is process:
                self._process = None
        _reap(process)

    def _restart_timer(self) -> None:
        """Start the idle time from zero."""
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


def _cancel_file(request: PictureConfig) -> Path:
    """Return the file that tells the sampler to cancel a request; `trainer.sampling.server` looks for it."""
    return Path(request.out).with_suffix(".given-up")


def _send(process: subprocess.Popen[str], request: PictureConfig) -> None:
    assert process.stdin  # a pipe
    with suppress(ValueError, OSError):  # if the process is dead, the end of its answers tells
        process.stdin.write(request.model_dump_json() + "\n")
        process.stdin.flush()


def _reap(process: subprocess.Popen[str]) -> None:
    """Wait for a process that is ending, and close this end of its pipes."""
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what was written last may no longer go out
            if pipe:
                pipe.close()


def _answers(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout  # a pipe
    while True:
        try:
            line = process.stdout.readline()
        except ValueError:  # the pipe was closed meanwhile
            return
        if not line:
            return
        try:
            answer = foreign_text.parse_json(line)
        except foreign_text.ForeignTextError:
            continue
        if isinstance(answer, dict):
            yield answer


def _drain(process: subprocess.Popen[str]) -> None:
    for answer in _answers(process):
        if "done" in answer or "error" in answer:
            return
