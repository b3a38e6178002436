"""The side of a run that is on a node of a cluster: a copy of its folder, and the worker that trains in it.

A relay calls these methods, through whatever connects it with the node. All that it sends and gets is plain data.
"""

import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from subprocess import Popen
from typing import Annotated

from filelock import FileLock
from pydantic import ConfigDict, Field

from limner_extensions.cluster import parcels
from trainer import __version__, paths, processes, runs, storage
from trainer.runs import COMMANDS, Run, run_files
from trainer.runs.run import PAUSE

ROOT = ".cluster"  # under a node's outputs: parcels that it keeps, and runs that it works on
UNUSED = 30 * 24 * 3600.0  # seconds after which a parcel that no run has used is removed
FAREWELL = 10.0  # seconds that a node may take to tidy up
PIECE = 16 * 2**20  # bytes that are sent at once
FORWARDED = (*COMMANDS, PAUSE)  # requests that a node's worker takes
Stamp = tuple[Annotated[int, Field(ge=0)], int]  # size and time of a file, by which a change is noticed


# Answers of a node, with the limits that the border of a relay checks.
_CHECKED = ConfigDict(strict=True, revalidate_instances="always")


@dataclass(frozen=True)
class About:
    """Facts about a node for a relay: its name, and the version of Limner there."""

    __pydantic_config__ = _CHECKED
    name: Annotated[str, Field(max_length=255)]
    version: Annotated[str, Field(max_length=40)]


@dataclass(frozen=True)
class News:
    """Changes of a run: the log's and the events' next bytes, all files, and requests not yet taken.

    `code` is the exit code of the worker, None while it lives; `now` is the node's time.
    """

    __pydantic_config__ = _CHECKED
    now: Annotated[float, Field(allow_inf_nan=False)]
    code: int | None
    events: Annotated[bytes, Field(max_length=PIECE)]
    log: Annotated[bytes, Field(max_length=PIECE)]
    config: Annotated[str, Field(max_length=2**20)]
    files: Annotated[dict[str, Stamp], Field(max_length=20_000)]
    requests: frozenset[str]


class NodeLostError(Exception):
    """A node has died, or cannot be reached any more. Any call of a node that is elsewhere may raise it."""


class Node:
    """A copy of a run on this machine. It lives as long as the run is here; its worker does not outlive it."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or paths.outputs() / ROOT
        self.home = self._root / "runs" / secrets.token_hex(8)
        self.home.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.home.with_suffix(".lock"))
        self._lock.acquire()  # before there is a folder, which another node of this machine would remove
        self.home.mkdir()
        self._worker: Popen[str] | None = None
        self._run = Run(self.home)
        _clean(self._root)

    def about(self) -> About:
        """Return the name of this node, and its version of Limner."""
        return About(socket.gethostname(), __version__)

    # Files to the node --------------------------------------------------------------------------------------------

    def lacks(self, key: str) -> bool:
        """Return True if a parcel has to be sent; one that is here is kept for another while.

        Raises:
            ValueError: the key cannot be that of a parcel. So in all functions that take one.
        """
        folder = self._root / "files" / _check_key(key)
        if folder.is_dir():
            os.utime(folder)
        return not folder.is_dir()

    def receive(self, key: str, path: str, piece: bytes, *, last: bool) -> None:
        """Add a piece to a file of a parcel that was begun; with the last one it is complete."""
        file = inside(self.home / "parcels" / _check_key(key), path)
        _add(file, piece, last=last)

    def keep(self, key: str) -> None:
        """Keep a parcel that is complete for this run and others.

        Raises:
            OSError: it is not what was sent.
        """
        folder = self.home / "parcels" / _check_key(key)
        checksums = {file.relative_to(folder).as_posix(): storage.sha256(file) for file in _files(folder)}
        if parcels.key_of(checksums) != key:
            raise OSError("the files that arrived are not those that were sent")
        (self._root / "files").mkdir(exist_ok=True)
        try:
            storage.replace(folder, self._root / "files" / key)
        except OSError:
            if self.lacks(key):  # otherwise another run has brought it
                raise

    def receive_run(self, run_id: str, path: str, piece: bytes, *, last: bool) -> None:
        """Add a piece to a file of the run's folder; with the last one it is complete.

        Raises:
            UserError: the name cannot be that of a run.
            ValueError: the path is not that of a file of a run.
        """
        self._run = Run(self.home / "outputs" / paths.check_name(run_id, "run"))
        if not run_files.is_any(path):
            raise ValueError(f"{path!r} is not a file of a run")
        _add(self._run.folder / path, piece, last=last)

    def begin(self) -> None:
        """Start the worker."""
        (self._run.folder / "ask").mkdir(exist_ok=True)
        with self._run.worker_log.open("ab") as log:
            command = [sys.executable, "-m", "trainer", "work-on-node", str(self._root), str(self._run.folder)]
            self._worker = processes.start(command, stdin=processes.PIPE, stdout=log, stderr=log)

    # News from the node -------------------------------------------------------------------------------------------

    def news(self, events: int, log: int, ask: Collection[str], withdraw: Collection[str]) -> News:
        """Pass requests on to the worker, or withdraw them, and return what is new since these places in both logs.

        Raises:
            ValueError: a worker knows no such request.
        """
        if not {*ask, *withdraw} <= set(FORWARDED):
            raise ValueError("a request that no worker knows")
        for name in ask:
            (self._run.folder / "ask" / name).touch()
        for name in withdraw:
            storage.remove(self._run.folder / "ask" / name)
        # In this order: a worker that has ended has written everything, and what an event names was there before it.
        code = self._worker.poll() if self._worker else None
        new_events = _tail(self._run.log, events)
        return News(
            now=time.time(),
            code=code,
            events=new_events,
            log=_tail(self._run.worker_log, log),
            config=self._run.config_file.read_text(encoding="utf-8"),
            files=stamps(self._run),
            requests=frozenset(path.name for path in (self._run.folder / "ask").glob("*")),
        )

    def read(self, path: str, offset: int) -> bytes | None:
        """Return the next bytes of a file of the run; b"" at its end, None if it was removed.

        Raises:
            ValueError: the path is not that of a file of a run.
        """
        if not run_files.is_file(path):
            raise ValueError(f"{path!r} is not a file of a run")
        return read_piece(self._run.folder / path, offset)

    def end(self) -> None:
        """End the worker if it lives, and remove the run from this machine, but not the parcels."""
        if self._worker:
            self._worker.kill()
            self._worker.communicate()  # closes its pipe, too
        shutil.rmtree(self.home, ignore_errors=True)
        self._lock.release()


def stamps(run: Run) -> dict[str, Stamp]:
    """Return the files of a run that are sent as they are, by their path in its folder, with what tells a change."""
    sent = {}
    for file in _files(run.folder):
        path = file.relative_to(run.folder)
        if not run_files.is_file(path.as_posix()):
            continue
        try:
            status = file.stat()
        except FileNotFoundError:  # a checkpoint that was just removed
            continue
        sent[path.as_posix()] = (status.st_size, status.st_mtime_ns)
    return sent


def read_piece(file: Path, offset: int) -> bytes | None:
    """Return up to PIECE bytes of a file from a place on; b"" at its end, None if it is not there."""
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            return opened.read(PIECE)
    except FileNotFoundError:
        return None


def _tail(file: Path, offset: int) -> bytes:
    return read_piece(file, offset) or b""


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if storage.is_regular_file(path)]


def _add(file: Path, piece: bytes, *, last: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}{storage.PART}")
    storage.append(part, [piece], from_start=False)
    if last:
        storage.finish(part, file)


def _check_key(key: str) -> str:
    if not parcels.is_key(key):
        raise ValueError("a key that no parcel can have")
    return key


def inside(folder: Path, path: str) -> Path:
    """Return a path in a folder, given by names between slashes.

    Raises:
        ValueError: it would lead out of the folder.
    """
    parts = PurePosixPath(path).parts
    if not parts or any(part in ("/", "..") or "\\" in part or ":" in part for part in parts):
        raise ValueError("a path that leads out of its folder")
    return folder.joinpath(*parts)


def _clean(root: Path) -> None:
    """Remove runs whose node has died, and parcels that no run has used for a month."""
    for home in (root / "runs").iterdir():
        if home.is_dir() and not runs.is_locked(home.with_suffix(".lock")):
            shutil.rmtree(home, ignore_errors=True)
            storage.remove(home.with_suffix(".lock"))
    for folder in (root / "files").glob("*"):
        if time.time() - folder.stat().st_mtime > UNUSED:
            shutil.rmtree(folder, ignore_errors=True)
