"""Parcels, named by content: datasets, base model, VAE and the adapter that a run starts from.

A node of a cluster keeps a parcel under its key, so that it is sent to each node once.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer import config, storage
from trainer.base_models import MICRO, detect, vae
from trainer.base_models.registry import FAMILIES
from trainer.config import TrainConfig
from trainer.data import captions, dataset

FOLDER = "./files"  # of a node's files, as seen from where its workers run
KEY_LENGTH = 32
MODEL_FILES = (".safetensors", ".json", ".txt", ".model")  # of a folder in diffusers format: what may be read


@dataclass(frozen=True)
class Parcel:
    """Files by their path in the parcel, and the path of what they are: a file, or a folder that holds them all."""

    main: str
    files: dict[str, Path]
    checksums: dict[str, str] = field(init=False)  # SHA-256, by the path in the parcel

    def __post_init__(self) -> None:
        object.__setattr__(self, "checksums", {path: storage.sha256(file) for path, file in self.files.items()})

    @property
    def key(self) -> str:
        """The name under which nodes keep it, which follows from its content."""
        return key_of(self.checksums)

    @property
    def path(self) -> str:
        """The path by which the settings on a node name it, the same on every node."""
        return f"{FOLDER}/{self.key}/{self.main}"


def key_of(checksums: dict[str, str]) -> str:
    """Return the key of a parcel from the SHA-256 of its files by their path."""
    return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


def is_key(text: str) -> bool:
    """Return True for what can be the key of a parcel."""
    return len(text) == KEY_LENGTH and set(text) <= set("0123456789abcdef")


def pack(settings: TrainConfig) -> dict[str, Parcel]:
    """Pack what settings name: datasets and files by the name that they have there.

    Raises:
        UserError: a dataset is not there.
    """
    packed: dict[str, Parcel] = {}

    def add(name: str, path: Path, files: Iterator[Path]) -> str:
        if name not in packed:
            packed[name] = Parcel(path.name, {_name_there(file, path.parent): file for file in sorted(files)})
        return name

    def file(name: str) -> str:
        path = Path(name).expanduser()
        return add(name, path, _model_files(path)) if name and detect.is_here(name) else name

    def base(name: str) -> str:
        return name if name == MICRO else file(name)

    def folder(name: str) -> str:
        path = dataset.find_folder(name) if name else Path()
        return add(name, path, _dataset_files(path)) if name else name

    config.with_paths(settings, base=base, file=file, dataset=folder)
    return packed


def _name_there(file: Path, folder: Path) -> str:
    """Return the path of a file in a parcel: that in a folder, or the name of a model's part from another folder."""
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name


def named_there(settings: TrainConfig, packed: Mapping[str, Parcel]) -> TrainConfig:
    """Return settings as a node reads them: with the paths of what was packed."""

    def there(name: str) -> str:
        return packed[name].path if name in packed else name

    return config.with_paths(settings, base=there, file=there, dataset=there)


def _dataset_files(folder: Path) -> Iterator[Path]:
    """Yield the images of a dataset with their captions and masks, and nothing else that lies beside them."""
    for part in dataset.parts(folder):
        for image in dataset.image_files(part.folder):
            beside = [dataset.mask_file(image), *(image.with_suffix(form) for form in captions.FORMS)]
            yield image
            yield from (path for path in beside if storage.is_regular_file(path))
        metadata = part.folder / captions.METADATA
        if storage.is_regular_file(metadata):
            yield metadata


def _model_files(path: Path) -> Iterator[Path]:
    """Yield the files of a model: those of a folder that are read, or a single file and its parts beside it."""
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.suffix in MODEL_FILES and file.is_file())
        return
    yield path
    facts = detect.glance(str(path))
    spec = FAMILIES[facts.family] if facts else None
    if spec and (own := vae.find_beside(path, spec.vae_file)):
        yield own
    for encoder in (*spec.text_encoders, spec.encoder_of(facts.size)) if spec and facts else ():
        if encoder and (beside := detect.find_beside(path, encoder.file_name)):
            yield beside
