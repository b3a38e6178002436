"""Judge whether the images of a dataset are beyond what the built-in base micro can draw. Torch-free.

`gauge` makes the figures, in a process that has the model; they lie in the data set's cache, each with the size and
time of its file.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from trainer import storage
from trainer.data import dataset, image_stats

SAMPLE = 12  # pictures that stand for all
LIMIT = 0.021  # see "What micro can draw" in docs/defaults.md
_VERSION = 1


def sample(folder: Path) -> list[Path]:
    """A few pictures that stand for a data set, from its first to its last."""
    pictures = dataset.pictures(folder)
    if len(pictures) <= SAMPLE:
        return pictures
    return [pictures[number * (len(pictures) - 1) // (SAMPLE - 1)] for number in range(SAMPLE)]


def missing(folder: Path) -> list[Path]:
    """The pictures of the sample that have no figure yet."""
    stored = _stored(folder)
    return [path for path in sample(folder) if stored.get(path.name, ((), None))[0] != image_stats.stamp(path)]


def known(folder: Path) -> dict[str, float]:
    """The figures of the sample as far as they are known, by the name of the picture."""
    stored = _stored(folder)
    entries = {path.name: stored.get(path.name, ((), None)) for path in sample(folder)}
    return {
        name: figure
        for name, (stamp, figure) in entries.items()
        if figure is not None and stamp == image_stats.stamp(folder / name)
    }


def keep(folder: Path, figures: Mapping[str, float | None]) -> None:
    """Keep figures beside those known before; None where there is none, so that it is not looked for again."""
    there = {path.name for path in dataset.pictures(folder)}
    entries = {name: entry for name, entry in _stored(folder).items() if name in there}
    entries |= {name: (image_stats.stamp(folder / name), figure) for name, figure in figures.items()}
    path = _file(folder)
    path.parent.mkdir(exist_ok=True)
    storage.write(path, json.dumps({"version": _VERSION, "pictures": entries}))


def is_beyond(figures: Mapping[str, float]) -> bool:
    """Tell whether most of the images are beyond what micro can draw."""
    return bool(figures) and statistics.median(figures.values()) > LIMIT


def _file(folder: Path) -> Path:
    return folder / dataset.CACHE / "micro.json"


def _stored(folder: Path) -> dict[str, tuple[tuple[int, ...], float | None]]:
    try:
        data = json.loads(_file(folder).read_text(encoding="utf-8"))
        if data["version"] != _VERSION:
            return {}
        return {
            str(name): (tuple(stamp), None if figure is None else float(figure))
            for name, (stamp, figure) in data["pictures"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged: made anew
        return {}
