"""What a run needs beside its folder: datasets, base model, VAE, and the adapter it starts from. Named by content.

A node of a cluster keeps a parcel under its key, so that it is sent to each node once.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer import config, storage
from trainer.base_models import MICRO, detect
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig
from trainer.data import dataset

FOLDER = "./files"  # of a node's files, as seen from where its workers run
MODEL_FILES = (".safetensors", ".json", ".txt", ".model")  # of a folder in diffusers format: what may be read


@dataclass(frozen=True)
class Parcel:
    """Files by their path in the parcel, and the path of what they are: a file, or a folder that holds them all."""

    main: str
    files: dict[str, Path]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", key_of({path: storage.sha256(file) for path, file in self.files.items()}))

    @property
    def path(self) -> str:
        """The path by which the settings on a node name it."""
        return f"{FOLDER}/{self.key}/{self.main}"


def key_of(checksums: dict[str, str]) -> str:
    """Return the key of a parcel from the SHA-256 of its files by their path."""
    return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class Luggage:
    """The parcels of a run, and its settings with paths of a node and back.

    The paths are the same on every node, so that a run does not notice that it goes on elsewhere.
    """

    parcels: dict[str, Parcel] = field(default_factory=dict)  # by how the run's own settings name them

    def pack(self, settings: TrainConfig) -> TrainConfig:
        """Pack what settings name, and return them as a node reads them.

        Raises:
            UserError: a dataset is not there.
        """

        def base(name: str) -> str:
            return name if name == MICRO else file(name)

        def file(name: str) -> str:
            return self._pack(name, _model_files, Path(name).expanduser()) if name and detect.is_here(name) else name

        def folder(name: str) -> str:
            return self._pack(name, _dataset_files, dataset.find_folder(name)) if name else name

        return config.with_paths(settings, base=base, file=file, dataset=folder)

    def _pack(self, name: str, listed: Callable[[Path], Iterator[Path]], path: Path) -> str:
        if name not in self.parcels:
            files = {file.relative_to(path.parent).as_posix(): file for file in sorted(listed(path))}
            self.parcels[name] = Parcel(path.name, files)
        return self.parcels[name].path

    def unpack(self, settings: TrainConfig) -> TrainConfig:
        """Return settings from a node with the names that they have here."""
        names = {parcel.path: name for name, parcel in self.parcels.items()}

        def here(name: str) -> str:
            return names.get(name, name)

        return config.with_paths(settings, base=here, file=here, dataset=here)


def _dataset_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a dataset, but for what Limner keeps about it, whose names begin with a point."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if storage.is_regular_file(path) and not hidden:
            yield path


def _model_files(path: Path) -> Iterator[Path]:
    """Yield the files of a model: those of a folder that are read, or a single file and text encoders beside it."""
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.suffix in MODEL_FILES and file.is_file())
        return
    yield path
    facts = detect.glance(str(path))
    spec = FAMILIES[facts.family] if facts else None
    for encoder in (*spec.text_encoders, spec.t5) if spec else ():
        if encoder and (beside := detect.find_beside(path, encoder.file_name)):
            yield beside
