"""Keep the folder of a run as it is on its node, and pass on what is asked of the run here."""

import hashlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from itertools import count
from pathlib import Path, PurePosixPath

from limner_extensions.cluster import border
from limner_extensions.cluster.border import Border, ChangedError
from limner_extensions.cluster.node import FORWARDED, PIECE, NodeLostError, Stamp, read_piece, stamps
from limner_extensions.cluster.parcels import Parcel, named_there
from limner_extensions.cluster.returned import Returned, is_checked
from trainer import config, runs, storage
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run, checkpoints, events
from trainer.runs.run import PAUSE


@dataclass
class Mirror:
    """State of a run's folder on its node, which began as a copy of the one here."""

    run: Run
    border: Border
    parcels: Mapping[str, Parcel]
    name: str
    _files: dict[str, Stamp] = field(default_factory=dict)
    _events: int = 0
    _log: int = 0
    _config: str = ""
    _asked: set[str] = field(default_factory=set)
    _clock: timedelta | None = None  # by how much the clock here is ahead
    _has_ended: bool = False

    @cached_property
    def _returned(self) -> Returned:
        return Returned(self.run, named_there(self.run.config(), self.parcels))

    # To the node --------------------------------------------------------------------------------------------------

    def send(self) -> None:
        """Send what the run needs and its folder as it is, and start the worker there.

        Raises:
            StopRequestedError: the run was asked to stop meanwhile.
        """
        for parcel in self.parcels.values():
            if self.border.node.lacks(parcel.key):
                self.send_parcel(parcel)
        self.send_run(config.dump(named_there(self.run.config(), self.parcels)))
        self.border.node.begin()

    def send_parcel(self, parcel: Parcel) -> None:
        """Send a parcel and have the node keep it.

        Raises:
            StopRequestedError: the run was asked to stop meanwhile.
            UserError: the files are no longer those that were packed.
        """
        title = _("Sending {name} to {node}", name=parcel.main, node=self.name)
        done, total = 0, sum(file.stat().st_size for file in parcel.files.values() if file.exists())
        for path, file in parcel.files.items():
            digest = hashlib.sha256()
            for piece, last in _pieces(file):
                digest.update(piece)
                self.border.node.receive(parcel.key, path, piece, last=last)
                before, done = done, done + len(piece)
                if done // 2**20 > before // 2**20:
                    self.run.progress(title, done // 2**20, total // 2**20)
            if digest.hexdigest() != parcel.checksums[path]:
                raise UserError(
                    "{name} has changed since the run started.", "Start a new run to train on it.", name=path
                )
        self.border.node.keep(parcel.key)

    def send_run(self, settings: str) -> None:
        """Send the run's folder as it is here, but with these settings."""
        node = self.border.node
        node.receive_run(self.run.id, self.run.config_file.name, settings.encode(), last=True)
        for path in stamps(self.run):
            for piece, last in _pieces(self.run.folder / path):
                node.receive_run(self.run.id, path, piece, last=last)
        for piece, last in _pieces(self.run.log):
            node.receive_run(self.run.id, self.run.log.name, piece, last=last)
            self._events += len(piece)
        self._config = settings
        self._files = dict(self.border.news(self._events, 0, [], []).files)

    # From the node ------------------------------------------------------------------------------------------------

    def update(self) -> int | None:
        """Bring the folder here up to date; return the exit code of the worker once nothing is left to bring.

        Raises:
            NodeLostError: the worker was killed, or the node answers what it should not.
        """
        wanted = {name for name in FORWARDED if (self.run.folder / "ask" / name).exists()}
        news = self.border.news(self._events, self._log, sorted(wanted - self._asked), sorted(self._asked - wanted))
        for name in wanted - news.requests - {PAUSE}:  # the worker has taken them
            storage.remove(self.run.folder / "ask" / name)
        self._asked = wanted & news.requests
        if self._clock is None:
            self._clock = timedelta(seconds=time.time() - news.now)
        self._print(news.log)
        self._take_settings(news.config)
        self._take_files(news.files)
        if self._report(news.events) or news.code is None:
            return None
        if not self._has_ended:
            raise NodeLostError(f"the worker on the node was killed (exit code {news.code})")
        return news.code

    def _print(self, log: bytes) -> None:
        room = border.MAX_LOG - self._log
        self._log += len(log)
        sys.stdout.write(border.clean(log[:room].decode(errors="replace"), border.MAX_LOG))
        if 0 < room <= len(log):
            sys.stdout.write("\n[The node has printed too much; the rest is not shown.]\n")
        sys.stdout.flush()

    def _take_settings(self, text: str) -> None:
        if text != self._config:
            self.run.save_config(border.take_settings(self.run.config(), text))
            self._config = text

    def _take_files(self, files: Mapping[str, Stamp]) -> None:
        """Write what has changed: checkpoints as whole folders, as they were written. Then remove what is gone."""
        changed = [path for path in sorted(files) if files[path] != self._files.get(path)]
        taken = dict(files)
        for unit in dict.fromkeys(map(_unit, changed)):
            stamps = {path: stamp for path, stamp in files.items() if _unit(path) == unit}
            try:
                self._take(unit, stamps)
            except ChangedError:  # looked at again with the next news
                for path in stamps:
                    taken.pop(path)
        for unit in dict.fromkeys(_unit(path) for path in self._files.keys() - files.keys()):
            here = self.run.folder / unit
            if here.is_dir():
                storage.remove_folder(here)
            else:
                storage.remove(here)
        self._files = taken

    def _take(self, unit: str, stamps: Mapping[str, Stamp]) -> None:
        target = self.run.folder / unit
        target.parent.mkdir(parents=True, exist_ok=True)
        if list(stamps) == [unit]:
            part = target.with_name(f".{target.name}{storage.PART}")
            try:
                self._fetch(part, unit, stamps[unit])
                if is_checked(unit):
                    self._returned.check(part)
                storage.finish(part, target)
            finally:
                storage.remove(part)
            return

        def fill(folder: Path) -> None:
            for path, stamp in stamps.items():
                file = folder / PurePosixPath(path).name
                self._fetch(file, path, stamp)
                storage.finish(file, file)
            self._returned.check_checkpoint(folder, int(PurePosixPath(unit).name))

        storage.write_folder(target, fill)

    def _fetch(self, file: Path, path: str, stamp: Stamp) -> None:
        storage.append(file, self.border.fetch(path, stamp), from_start=True)
        border.check_file(file, path)

    def _report(self, log: bytes) -> bool:
        """Add the events of the node to the log here, as those of this process; return False if there were none."""
        reported, length = border.read_events(log)
        self._events += length
        for event in reported:
            if isinstance(event, events.Finished):
                self._returned.check_finished(event)
            self.run.report(self._own(event))
            self._has_ended = event.kind in runs.ENDS
        return length > 0

    def _own(self, event: events.Event) -> events.Event:
        event = border.shift(event, self._clock or timedelta())
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
