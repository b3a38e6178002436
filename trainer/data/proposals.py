"""Captions that a model proposes for a dataset, until they are kept or discarded. They lie in the dataset's cache."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from trainer import foreign_text, paths, storage
from trainer.data import caption_edits, dataset
from trainer.data.caption_edits import Edit
from trainer.data.captions import read_caption

FILE = "proposals.json"
TITLE = "automatic captions"


def read(folder: Path) -> dict[str, Edit]:
    """Return the proposals, by the name of the image; `before` is the caption that was there when they were made."""
    data = foreign_text.read_own_json(folder / paths.CACHE / FILE)
    return {row["name"]: Edit(**row) for row in data or ()}


def add(folder: Path, edits: Sequence[Edit]) -> None:
    """Add proposals; one that an image had before is replaced."""
    with dataset.captions_lock(folder):
        _write(folder, read(folder) | {edit.name: edit for edit in edits})


def keep(folder: Path, names: Collection[str] | None = None) -> int:
    """Save the proposals of some images as their captions, as one change that can be undone; return how many.

    Without names these are all but those of images whose caption was changed since: they wait for a decision.
    """
    with dataset.captions_lock(folder):
        proposed, present = read(folder), {path.name for path in dataset.image_files(folder)}
        kept = []
        for name in present & set(proposed if names is None else names) & set(proposed):
            before = read_caption(folder / name)
            if names is not None or before == proposed[name].before:
                kept.append(Edit(name, before, proposed[name].after))
        caption_edits.apply(folder, sorted(kept, key=lambda edit: edit.name), TITLE)
        decided = {edit.name for edit in kept}
        _write(folder, {name: edit for name, edit in proposed.items() if name in present - decided})
    return len(kept)


def discard(folder: Path, names: Collection[str] | None = None) -> None:
    """Discard the proposals of some images, or all of them."""
    with dataset.captions_lock(folder):
        left = {} if names is None else {name: edit for name, edit in read(folder).items() if name not in names}
        _write(folder, left)


def _write(folder: Path, proposed: dict[str, Edit]) -> None:
    path = folder / paths.CACHE / FILE
    if proposed:
        storage.write(path, json.dumps([asdict(edit) for edit in proposed.values()]))
    else:
        storage.remove(path)
