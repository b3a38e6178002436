"""Keep the folder of a run as it is on its node, and pass on what is asked of the run here."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path, PurePosixPath

from trainer import config, storage
from trainer.cluster.node import PIECE, Node, Stamp, inside, is_sent, read_piece, stamps
from trainer.cluster.parcels import Luggage, Parcel
from trainer.i18n import _
from trainer.runs import COMMANDS, Run, checkpoints, events
from trainer.runs.run import PAUSE

FORWARDED = (*COMMANDS, PAUSE)


class _RemovedError(Exception):
    """A file was removed on the node while it was read."""


@dataclass
class Mirror:
    """What is known of a run's folder on its node, which began as a copy of the one here."""

    run: Run
    node: Node
    luggage: Luggage
    name: str
    _files: dict[str, Stamp] = field(default_factory=dict)
    _events: int = 0
    _log: int = 0
    _config: str = ""
    _asked: set[str] = field(default_factory=set)
    _clock: timedelta | None = None  # by how much the clock here is ahead

    # To the node --------------------------------------------------------------------------------------------------

    def send(self) -> None:
        """Send what the run needs and its folder as it is, and start the worker there.

        Raises:
            StopRequestedError: the run was asked to stop meanwhile.
        """
        settings = self.luggage.pack(self.run.config())
        for parcel in self.luggage.parcels.values():
            if self.node.lacks(parcel.key):
                self.send_parcel(parcel)
        self.send_run(config.dump(settings))
        self.node.begin()

    def send_parcel(self, parcel: Parcel) -> None:
        """Send a parcel and have the node keep it.

        Raises:
            StopRequestedError: the run was asked to stop meanwhile.
        """
        title = _("Sending {name} to {node}", name=parcel.main, node=self.name)
        done, total = 0, sum(file.stat().st_size for file in parcel.files.values())
        for path, file in parcel.files.items():
            for piece, last in _pieces(file):
                self.node.receive(parcel.key, path, piece, last=last)
                before, done = done, done + len(piece)
                if done // 2**20 > before // 2**20:
                    self.run.progress(title, done // 2**20, total // 2**20)
        self.node.keep(parcel.key)

    def send_run(self, settings: str) -> None:
        """Send the run's folder as it is here, but with these settings."""
        self.node.receive_run(self.run.id, self.run.config_file.name, settings.encode(), last=True)
        for path in stamps(self.run):
            for piece, last in _pieces(self.run.folder / path):
                self.node.receive_run(self.run.id, path, piece, last=last)
        for piece, last in _pieces(self.run.log):
            self.node.receive_run(self.run.id, self.run.log.name, piece, last=last)
            self._events += len(piece)
        self._config = settings
        self._files = dict(self.node.news(self._events, 0, [], []).files)

    # From the node ------------------------------------------------------------------------------------------------

    def update(self) -> int | None:
        """Bring the folder here up to date; return the exit code of the worker once nothing is left to bring."""
        wanted = {name for name in FORWARDED if (self.run.folder / "ask" / name).exists()}
        news = self.node.news(self._events, self._log, sorted(wanted - self._asked), sorted(self._asked - wanted))
        for name in wanted - news.requests - {PAUSE}:  # the worker has taken them
            storage.remove(self.run.folder / "ask" / name)
        self._asked = wanted & news.requests
        if self._clock is None:
            self._clock = timedelta(seconds=time.time() - news.now)
        self._print(news.log)
        self._take_settings(news.config)
        self._take_files({path: stamp for path, stamp in news.files.items() if is_sent(path)})
        return None if self._report(news.events) else news.code

    def _print(self, log: bytes) -> None:
        self._log += len(log)
        sys.stdout.write(log.decode(errors="replace"))
        sys.stdout.flush()

    def _take_settings(self, text: str) -> None:
        if text != self._config:
            settings = config.build(config.parse(text, self.run.config_file.name))
            self.run.save_config(self.luggage.unpack(settings))
            self._config = text

    def _take_files(self, files: Mapping[str, Stamp]) -> None:
        """Write what has changed: checkpoints as whole folders, as they were written. Then remove what is gone."""
        changed = [path for path in sorted(files) if files[path] != self._files.get(path)]
        for unit in dict.fromkeys(map(_unit, changed)):
            paths = [path for path in files if _unit(path) == unit]
            try:
                self._take(unit, paths)
            except _RemovedError:  # meanwhile; what replaced it comes with the next news
                continue
        for unit in dict.fromkeys(_unit(path) for path in self._files.keys() - files.keys()):
            here = inside(self.run.folder, unit)
            if here.is_dir():
                storage.remove_folder(here)
            else:
                storage.remove(here)
        self._files = dict(files)

    def _take(self, unit: str, paths: Sequence[str]) -> None:
        target = inside(self.run.folder, unit)
        target.parent.mkdir(parents=True, exist_ok=True)
        if paths == [unit]:
            storage.write_chunks(target, self._fetch(unit))
            return

        def fill(folder: Path) -> None:
            for path in paths:
                storage.write_chunks(inside(folder, PurePosixPath(path).name), self._fetch(path))

        storage.write_folder(target, fill)

    def _fetch(self, path: str) -> Iterator[bytes]:
        offset = 0
        while piece := self.node.read(path, offset):
            offset += len(piece)
            yield piece
            if len(piece) < PIECE:
                return
        if piece is None:
            raise _RemovedError

    def _report(self, log: bytes) -> bool:
        """Add the events of the node to the log here, as those of this process; tell whether there were any."""
        reported, length = events.parse(log)
        self._events += length
        for event in reported:
            self.run.report(self._own(event))
        return length > 0

    def _own(self, event: events.Event) -> events.Event:
        event = event.model_copy(update={"time": event.time + (self._clock or timedelta())})
        match event:
            case events.Began():
                return event.model_copy(update={"pid": os.getpid(), "cards": ()})
            case events.Started():
                return event.model_copy(update={"pid": os.getpid(), "device": f"{event.device}, {self.name}"})
            case events.Finished():
                file = self.run.config_file
                return event.model_copy(update={"sha256": {**event.sha256, file.name: storage.sha256(file)}})
            case _:
                return event


def _unit(path: str) -> str:
    """Return what is written at once: the folder of a checkpoint, or a file."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == checkpoints.FOLDER else path


def _pieces(file: Path) -> Iterator[tuple[bytes, bool]]:
    """Yield the pieces of a file, each with whether it is the last; an empty file has one."""
    piece = read_piece(file, 0)
    for number in count(1):
        following = read_piece(file, number * PIECE) if piece else b""
        if piece is None:  # removed
            return
        yield piece, not following
        if not following:
            return
        piece = following
