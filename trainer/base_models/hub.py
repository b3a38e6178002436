"""Base models on the Hugging Face Hub: their names, what of a repository is needed, and what is here. Offline.

Only `hub_download` and `publishing.hub_upload` ever ask the hub; everything else sees what is in the hub's cache.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from trainer.base_models.spec import DENOISERS

# A repository in diffusers format (owner/name), which is not called like a file, or one file of it (owner/name/file).
NAME = re.compile(
    r"(\w[\w.-]{0,95}/\w[\w.-]{0,95})(?<!\.safetensors)(?:/(\w[\w. ()/-]{0,199}\.safetensors))?", re.ASCII
)
INDEX = "model_index.json"
INDEXES = (INDEX, "modular_model_index.json")  # the latter of a pipeline that diffusers has in blocks
# Folders of a repository that hold weights.
WEIGHTS = (*DENOISERS, "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "text_conditioner")
NEEDED = (*WEIGHTS, "tokenizer", "tokenizer_2", "tokenizer_3", "t5_tokenizer", "scheduler")
_HALF = re.compile(r"[\w-]+\.fp16(-\d+-of-\d+)?\.safetensors|[\w-]+\.safetensors\.index\.fp16\.json")
_FULL = re.compile(r"[\w-]+\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class WellKnown:
    """A base model that many start from; the size of its download in GB, and its license."""

    base: str
    title: str
    size: float
    license: str


# Sizes from the numbers of parameters in 16 bits; licenses as the repositories name them.
WELL_KNOWN = (
    WellKnown("stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5", 2.1, "CreativeML Open RAIL-M"),
    WellKnown("stabilityai/stable-diffusion-xl-base-1.0", "Stable Diffusion XL 1.0", 6.9, "CreativeML Open RAIL++-M"),
    WellKnown("cagliostrolab/animagine-xl-4.0", "Animagine XL 4.0 (anime)", 6.9, "CreativeML Open RAIL++-M"),
    WellKnown(
        "OnomaAIResearch/Illustrious-xl-early-release-v0/Illustrious-XL-v0.1.safetensors",
        "Illustrious XL 0.1 (anime)",
        6.9,
        "Fair AI Public License 1.0-SD",
    ),
)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, and its bytes."""

    path: str
    size: int

    @property
    def folder(self) -> str:
        """Component that the file belongs to; "" at the top."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Name without folders."""
        return self.path.rpartition("/")[2]


def split(base: str) -> tuple[str, str]:
    """Return the repository and the file that a name stands for; the file is "" for a repository in diffusers format.

    Raises:
        ValueError: it cannot be a name on the hub.
    """
    match = NAME.fullmatch(base)
    if not match:
        raise ValueError(base)
    return match[1], match[2] or ""


def cached(base: str, revision: str = "") -> Path | None:
    """Return the path of a base model in the hub's cache: a folder or a single file; None if it is not complete there.

    Raises:
        ValueError: a name or a revision that the cache cannot have.
    """
    repository, file = split(base)
    names: Sequence[str] = INDEXES
    if file:
        names = [file]
    paths = (try_to_load_from_cache(repository, name, revision=revision or None) for name in names)
    path = next((path for path in paths if isinstance(path, str)), None)
    if not path:
        return None
    if file:
        return Path(path)
    folder = Path(path).parent
    weights = (
        part for name in DENOISERS for part in (folder / name).glob("*") if part.suffix in (".safetensors", ".bin")
    )
    return folder if any(weights) else None


def index(folder: Path) -> Path:
    """Return the file of a folder in diffusers format that lists its parts, whether it is there or not."""
    return next((folder / name for name in INDEXES if os.path.isfile(folder / name)), folder / INDEX)


def commit(path: Path) -> str:
    """Return the commit of a path in the hub's cache, which names a snapshot by it."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1]


def repository(path: Path) -> str:
    """Return the name of the repository, without its owner, that a path in the hub's cache belongs to; "" elsewhere."""
    return next((part.rpartition("--")[2] for part in path.parts if part.startswith("models--")), "")


def select(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files of a repository in diffusers format that are needed, its index last; [] for another repository.

    Weights in fp16 are taken if every component has them, as they are half the size; otherwise those in full precision.
    """
    index = [file for file in files if file.path in INDEXES]
    if not index:
        return []
    parts = [file for file in files if file.folder in NEEDED]
    settings = [file for file in parts if not re.search(r"\.(safetensors|bin|ckpt|msgpack|onnx)", file.name)]
    halves = [file for file in parts if file.folder in WEIGHTS and _HALF.fullmatch(file.name)]
    full = [file for file in parts if file.folder in WEIGHTS and _FULL.fullmatch(file.name)]
    has_halves = {file.folder for file in halves} >= {file.folder for file in full}
    return [*(halves if has_halves else full), *settings, *index]
