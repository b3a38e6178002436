"""Border between a run here and the node that trains it: what a node answers is checked before anything uses it.

A node is another machine. It may be broken, or belong to someone who would like to read or change files here. So
settings that come back change only what a worker decides, files have the paths and sizes of a run's, events name only
these, and every answer has a limit. A node that breaks one of these rules is lost, as if its power had failed.
"""

import errno
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from limner_extensions.cluster.node import PIECE, About, News, Node, NodeLostError, Stamp
from trainer import config, storage
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.runs import events, run_files
from trainer.runs.run import SETTINGS

ABOUT, NEWS = TypeAdapter(About), TypeAdapter(News)
MAX_TOTAL = 256 * 2**30  # bytes of all files: a hundred checkpoints of the largest adapters
MAX_EVENTS = 2**28  # bytes: a million steps
MAX_LINE = 2**20  # bytes of an event; the longest has a traceback
MAX_LOG = 2**26  # bytes of a node's log that are kept
BEYOND_LOG = 2**62  # an offset behind the end of any log
MAX_NUMBER = 2**53  # of what an event counts
MAX_TEXT = 2**15  # letters of a text; the longest is a traceback
MAX_REASON = 300  # letters of why a node is lost
MAX_ITEMS = 1000  # of a list in an event; the longest has a row for each program
MAX_CLOCK = 100 * 365 * 24 * 3600.0  # seconds between two clocks; one without a battery starts in 1970
Value = TypeVar("Value")
# What a worker decides, by section of the settings. Everything else stays as it is here, above all paths.
DECIDED = {
    "record": (),  # all of it
    "model": ("family", "revision", "prediction_type", "clip_skip"),
    "adapter": ("rank",),
    "optimizer": ("learning_rate",),
    "training": ("steps", "precision", "micro_batches", "gradient_checkpointing", "offload"),
    "preview": ("prompts",),
}
SUGGESTED = {"optimizer.learning_rate", "training.resolution", "training.further_resolutions"}  # after a failure


@dataclass
class Border:
    """A node whose answers are checked; `folder` is that of the run here.

    Each method raises NodeLostError if the node is gone, or answers what no node of Limner would.
    """

    node: Node
    folder: Path
    _mismatches: set[tuple[str, Stamp]] = field(default_factory=set)

    def about(self) -> About:
        """Return the node's name and version."""
        try:
            about = ABOUT.validate_python(About(**vars(self.node.about())))
        except (ValidationError, TypeError):
            raise NodeLostError("the node did not tell its name and version") from None
        return About(clean(about.name), clean(about.version))

    def news(self, offset: int, log: int, ask: Sequence[str], withdraw: Sequence[str]) -> News:
        """Return what `Node.news` does. A log ends at `MAX_LOG` bytes."""
        answer = self.node.news(offset, log if log < MAX_LOG else BEYOND_LOG, ask, withdraw)
        try:
            news = NEWS.validate_python(News(**vars(answer)))
        except (ValidationError, TypeError) as error:
            raise NodeLostError(f"the node's news are not valid: {clean(str(error), MAX_REASON)}") from None
        for path in news.files:
            if not run_files.is_file(path):
                raise NodeLostError(f"the node announced {path[:100]!r}, which is not a file of a run")
        if sum(size for size, _time in news.files.values()) > MAX_TOTAL:
            raise NodeLostError(f"the node announced files of more than {MAX_TOTAL // 2**30} GB")
        if offset + len(news.events) > MAX_EVENTS:
            raise NodeLostError(f"the node reported events of more than {MAX_EVENTS // 2**20} MB")
        if abs(news.now - time.time()) > MAX_CLOCK:
            raise NodeLostError("the node's clock cannot be right")
        return news

    def fetch(self, path: str, stamp: Stamp) -> Iterator[bytes]:
        """Yield the pieces of a file, which together have the announced size.

        Raises:
            ChangedError: they do not, as the file was removed or replaced meanwhile.
            OSError: the disk here has no room for it.
        """
        size = left = stamp[0]
        if storage.usable_space(self.folder) < size:
            raise OSError(errno.ENOSPC, "the files of a node do not fit on the disk")
        while True:
            piece = self.node.read(path, size - left)
            if not isinstance(piece, bytes) or len(piece) > min(left, PIECE) or (left and not piece):
                self._mismatch(path, stamp, is_gone=piece is None)
            elif not piece:
                return
            else:
                left -= len(piece)
                yield piece

    def _mismatch(self, path: str, stamp: Stamp, *, is_gone: bool) -> None:
        """Give up a file for now, and the node the second time: a file that was replaced has another stamp."""
        if not is_gone and (path, stamp) in self._mismatches:
            raise NodeLostError(f"{path} has another size than the node announced")
        self._mismatches.add((path, stamp))
        raise ChangedError


class ChangedError(Exception):
    """A file was removed or replaced on the node while it was read; its next news say so."""


def check_file(file: Path, path: str) -> None:
    """Check that a file from a node is what its path in the run says.

    Raises:
        NodeLostError: it is not.
    """
    try:
        run_files.check(file, path)
    except UserError as error:
        raise NodeLostError(f"{path} from the node is damaged: {clean(error.message, MAX_REASON)}") from None


def take_settings(ours: TrainConfig, text: str) -> TrainConfig:
    """Return our settings with what the worker on a node has decided.

    Raises:
        NodeLostError: the text is not settings, or a value is out of bounds.
    """
    try:
        theirs = config.parse(text, SETTINGS)
        data = ours.model_dump(mode="json")
        for section, names in DECIDED.items():
            values = theirs.get(section)
            if not isinstance(values, dict):
                raise NodeLostError(f"the settings of the node lack {section}")
            data[section] |= {name: clean(values[name]) for name in names or values if name in values}
        return config.check(TrainConfig, data)
    except UserError as error:
        raise NodeLostError(f"the settings of the node are not valid: {clean(error.message, MAX_REASON)}") from None


def read_events(data: bytes) -> tuple[list[events.Event], int]:
    """Return the events in a piece of a node's log, and the length of their lines.

    Raises:
        NodeLostError: one of them is not what a worker reports.
    """
    reported, length = events.parse(data)
    lines = [*data[:length].split(b"\n"), data[length:]]
    if max(map(len, lines)) > MAX_LINE:
        raise NodeLostError(f"the node reported an event of more than {MAX_LINE // 2**20} MB")
    return [_checked(event) for event in reported], length


def _checked(event: events.Event) -> events.Event:
    """Return an event with all texts in it cleaned.

    Raises:
        NodeLostError: it names a file that is not one of a run, or a setting or number that no worker would.
    """
    for path in run_files.named_by(event):
        if not run_files.is_any(path):
            raise NodeLostError(f"the node reported {path[:100]!r}, which is not a file of a run")
    if isinstance(event, events.Failed) and not event.change.keys() <= SUGGESTED:
        raise NodeLostError("the node suggests settings that no worker would")
    numbers = [value for _name, value in event if isinstance(value, int)]
    if any(not 0 <= number <= MAX_NUMBER for number in numbers) or event.time.tzinfo is None:
        raise NodeLostError("the node reported numbers or a time that cannot be right")
    return clean(event)


def shift(event: events.Event, clock: timedelta) -> events.Event:
    """Return an event with its time as the clock here has it.

    Raises:
        NodeLostError: no calendar has that time.
    """
    try:
        return event.model_copy(update={"time": event.time + clock})
    except OverflowError:
        raise NodeLostError("the node reported a time that cannot be right") from None


def clean(value: Value, most: int = MAX_TEXT) -> Value:
    """Return a value in which every text, at any depth, has at most so many letters, and none that steers a terminal.

    What a text says is not changed: who shows it in a page or a shell escapes it there.

    Raises:
        NodeLostError: a list in it is longer than any that a worker reports.
    """
    if isinstance(value, BaseModel):
        cleaned: object = value.model_copy(update={name: clean(inner, most) for name, inner in value})
    elif isinstance(value, str):
        letters = (letter if letter.isprintable() or letter in "\n\r\t" else "\ufffd" for letter in value[:most])
        cleaned = "".join(letters)
    elif isinstance(value, dict | list | tuple):
        if len(value) > MAX_ITEMS:
            raise NodeLostError(f"the node reported a list of more than {MAX_ITEMS:,} entries")
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        inside = {clean(key, most): clean(inner, most) for key, inner in pairs}
        cleaned = inside if isinstance(value, dict) else type(value)(inside.values())
    else:
        return value
    return cast(Value, cleaned)
