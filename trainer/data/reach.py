"""Judge whether the images of a dataset are beyond what the built-in base micro can draw. Torch-free.

`training.gauge` computes an error for each image of a sample, in a process that has the model. The errors are kept in
the dataset's cache, with the size and time of each file.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from trainer import foreign_text, paths, storage
from trainer.data import dataset, image_stats

SAMPLE = 12  # images that stand for all
LIMIT = 0.021  # see "What micro can draw" in docs/defaults.md
_VERSION = 2
_UNKNOWN: tuple[tuple[int, ...], float | None] = ((), None)


def sample(folder: Path) -> list[Path]:
    """Return a few images that stand for a dataset, evenly spaced from its first to its last."""
    images = dataset.image_files(folder)
    if len(images) <= SAMPLE:
        return images
    return [images[number * (len(images) - 1) // (SAMPLE - 1)] for number in range(SAMPLE)]


def missing(folder: Path) -> list[Path]:
    """Return the images of the sample whose error is not known yet."""
    stored = _stored(folder)
    return [path for path in sample(folder) if stored.get(path.name, _UNKNOWN)[0] != image_stats.stamp(path)]


def known(folder: Path) -> dict[str, float]:
    """Return the errors of the sample that are known, by the name of the image."""
    stored = _stored(folder)
    errors = {}
    for path in sample(folder):
        stamp, error = stored.get(path.name, _UNKNOWN)
        if error is not None and stamp == image_stats.stamp(path):
            errors[path.name] = error
    return errors


def keep(folder: Path, errors: Mapping[str, float | None]) -> None:
    """Keep errors beside those known before; None for an image that has none, so that it is not tried again."""
    existing = {path.name for path in dataset.image_files(folder)}
    entries = {name: entry for name, entry in _stored(folder).items() if name in existing}
    entries |= {name: (image_stats.stamp(folder / name), error) for name, error in errors.items()}
    path = _file(folder)
    path.parent.mkdir(exist_ok=True)
    storage.write(path, json.dumps({"version": _VERSION, "pictures": entries}))


def is_beyond(errors: Mapping[str, float]) -> bool:
    """Return True if most of the images are beyond what micro can draw."""
    return bool(errors) and statistics.median(errors.values()) > LIMIT


def _file(folder: Path) -> Path:
    return folder / paths.CACHE / "micro.json"


def _stored(folder: Path) -> dict[str, tuple[tuple[int, ...], float | None]]:
    data = foreign_text.read_own_json(_file(folder))
    try:
        pictures = data["pictures"] if data["version"] == _VERSION else {}
        return {name: (tuple(stamp), error) for name, (stamp, error) in pictures.items()}
    except (KeyError, TypeError, ValueError, AttributeError):  # not as `keep` writes it: computed again
        return {}
