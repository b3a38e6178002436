"""Tensors that were computed once, kept by content in files and, as far as they fit, in memory."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainer import storage
from trainer.data import dataset
from trainer.errors import UserError

ROOM = 2 * 2**30  # bytes held in memory; the rest of a large data set is read again in each step, in about 0.2 ms


def place(folder: Path, *parts: str) -> Path:
    """The file for a value that depends on these parts, in the cache of a folder."""
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return folder / dataset.CACHE / f"{key}.safetensors"


@dataclass
class Shelf:
    """Tensors by their file. What was read or written once is there for the whole run, in memory or on disk."""

    room: int = ROOM
    _held: dict[Path, dict[str, Tensor]] = field(default_factory=dict)
    _on_disk: set[Path] = field(default_factory=set)

    def has(self, file: Path, keys: set[str]) -> bool:
        """Tell whether a value is cached, whole and with these keys; if not, it has to be computed and stored."""
        if file in self._held or file in self._on_disk:
            return True
        tensors = _read(file)
        if not tensors or not keys <= tensors.keys() or not all(one.isfinite().all() for one in tensors.values()):
            return False
        self._take(file, tensors, written=True)
        return True

    def put(self, file: Path, tensors: dict[str, Tensor]) -> None:
        """Keep a value; in a read-only data set, in memory alone."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            storage.write(file, save(tensors))
        except OSError:
            self._take(file, tensors, written=False)
        else:
            self._take(file, tensors, written=True)

    def get(self, file: Path) -> dict[str, Tensor]:
        """A value that is there.

        Raises:
            UserError: its file vanished in the meantime.
        """
        if file in self._held:
            return self._held[file]
        tensors = _read(file)
        if not tensors:
            raise UserError("The data set's cache was removed during the training.", "Resume the run; it is made anew.")
        return tensors

    def _take(self, file: Path, tensors: dict[str, Tensor], *, written: bool) -> None:
        size = sum(one.nbytes for one in tensors.values())
        if written and size > self.room:
            self._on_disk.add(file)
        else:
            self.room -= size
            self._held[file] = tensors


def _read(file: Path) -> dict[str, Tensor] | None:
    try:
        return load(file.read_bytes())
    except (OSError, SafetensorError):
        return None
