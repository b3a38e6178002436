"""Tensor cache: values computed once, kept by a hash of their inputs in files and, as far as they fit, in memory.

Each file has a checksum in its metadata: a damaged one is computed again instead of being trained on.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainer import paths, storage
from trainer.adapter_files import safetensors_reader
from trainer.errors import UserError

ROOM = 2 * 2**30  # bytes held in memory; the rest of a large dataset is read again in each step, in about 0.2 ms


def file_of(folder: Path, *inputs: str) -> Path:
    """Return the file for a value that depends on these inputs, in the cache of a folder."""
    key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()
    return folder / paths.CACHE / f"{key}.safetensors"


@dataclass
class TensorCache:
    """Tensors by their file, kept in memory or on disk for the whole run once they were read or written."""

    room: int = ROOM
    _in_memory: dict[Path, dict[str, Tensor]] = field(default_factory=dict)
    _on_disk: set[Path] = field(default_factory=set)

    def has(self, file: Path, keys: set[str]) -> bool:
        """Return True if a value is cached, complete and with these keys; if not, it has to be computed and stored."""
        if file in self._in_memory or file in self._on_disk:
            return True
        tensors = _read_whole(file)
        if not tensors or not keys <= tensors.keys():
            return False
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            return False
        self._keep(file, tensors, written=True)
        return True

    def put(self, file: Path, tensors: dict[str, Tensor]) -> None:
        """Store a value; for a dataset that is read-only or has been deleted, in memory only."""
        try:
            file.parent.mkdir(exist_ok=True)
            checksum = safetensors_reader.body_sha256(save(tensors))
            storage.write(file, save(tensors, {safetensors_reader.CHECKSUM: checksum}))
        except OSError:
            self._keep(file, tensors, written=False)
        else:
            self._keep(file, tensors, written=True)

    def get(self, file: Path) -> dict[str, Tensor]:
        """Return a cached value.

        Raises:
            UserError: its file was deleted in the meantime.
        """
        if file in self._in_memory:
            return self._in_memory[file]
        tensors = _read(file)
        if not tensors:
            raise UserError("The dataset's cache was deleted during training.", "Resume the run; it will be rebuilt.")
        return tensors

    def _keep(self, file: Path, tensors: dict[str, Tensor], *, written: bool) -> None:
        size = sum(tensor.nbytes for tensor in tensors.values())
        if written and size > self.room:
            self._on_disk.add(file)
        else:
            self.room -= size
            self._in_memory[file] = tensors


def _read_whole(file: Path) -> dict[str, Tensor] | None:
    """Read a file that is not damaged."""
    try:
        safetensors_reader.check_sum(safetensors_reader.read(file))
    except (OSError, UserError):
        return None
    return _read(file)


def _read(file: Path) -> dict[str, Tensor] | None:
    try:
        return load(file.read_bytes())
    except (OSError, SafetensorError):
        return None
