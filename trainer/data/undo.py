"""Undo for changes of a dataset: captions, rotations and crops, masks.

Levels are kept in the dataset's cache, so that a change can also be undone after a restart. What was changed again
since stays as it is.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer import foreign_text, paths, storage
from trainer.data import dataset, image_edits
from trainer.data.captions import read_text
from trainer.data.image_edits import Edit

LEVELS = 20


@dataclass(frozen=True)
class Undone:
    """Result of an undo: title of the change; captions restored, and kept because they were edited since; images."""

    title: str
    captions: int
    newer: int
    images: int = 0


def record(folder: Path, title: str, **changes: Mapping[str, object]) -> None:
    """Record a change that is about to be made. `title` names it for the user, as in "Undo: `title`".

    `changes` are `captions`, `images` and `masks`: for each name what was there before, and after.
    """
    undo_folder = paths.make_cache(folder, "undo")
    with dataset.captions_lock(folder):
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        storage.write(undo_folder / f"{stamp}.json", json.dumps({"what": title, **changes}))
        for old in _levels(folder)[:-LEVELS]:
            storage.remove(old)


def edit_images(folder: Path, edits: Mapping[str, Edit], title: str) -> None:
    """Rotate or crop images, so that `undo` restores all of them.

    Raises:
        UserError: as `image_edits.change`; the images before that one are changed, and `undo` restores them.
    """
    with dataset.captions_lock(folder):
        before = {name: image_edits.current(folder / name) for name in edits}
        changes = {name: [asdict(before[name]), asdict(edit)] for name, edit in edits.items() if edit != before[name]}
        if changes:
            record(folder, title, images=changes)
        for name in changes:
            image_edits.change(folder / name, edits[name])


def edit_masks(folder: Path, new: Mapping[str, bytes], title: str) -> None:
    """Write masks of images (the files' names), or remove those that are b"", so that `undo` restores all of them.

    Raises:
        UserError: as `image_edits.write_mask`.
    """
    with dataset.captions_lock(folder):
        before = {name: dataset.read_mask(folder / name) for name in new}
        changes = {
            name: [base64.b64encode(before[name]).decode(), hashlib.sha256(mask).hexdigest()]
            for name, mask in new.items()
            if mask != before[name]
        }
        if changes:
            record(folder, title, masks=changes)
        for name in changes:
            image_edits.write_mask(folder / name, new[name])


def last_title(folder: Path) -> str:
    """Return the title of the change that `undo` would revert; "" if there is none."""
    for path in reversed(_levels(folder)):
        level = foreign_text.read_own_table(path)
        if "what" in level:
            return str(level["what"])
    return ""


def undo(folder: Path) -> Undone | None:
    """Undo the latest change; None if there is none. What was changed since stays as it is."""
    with dataset.captions_lock(folder):
        for path in reversed(_levels(folder)):
            level = foreign_text.read_own_table(path)
            if "what" in level:
                undone = _restore(folder, level)
                storage.remove(path)
                return undone
            storage.remove(path)
    return None


def _restore(folder: Path, level: dict[str, Any]) -> Undone:
    restored = newer = images = 0
    existing = {path.name for path in dataset.image_files(folder)}
    for name, (before, after) in level.get("captions", {}).items():
        if name not in existing:
            continue
        caption = read_text(folder / name)
        if caption == after:
            dataset.write_caption(folder / name, before)
            restored += 1
        elif caption != before:  # it is as before where the change was interrupted
            newer += 1
    for name, (before, after) in level.get("images", {}).items():
        if name in existing and image_edits.current(folder / name) == Edit.of(after):
            image_edits.change(folder / name, Edit.of(before))
            images += 1
    for name, (before, after) in level.get("masks", {}).items():
        if name in existing and hashlib.sha256(dataset.read_mask(folder / name)).hexdigest() == after:
            image_edits.write_mask(folder / name, base64.b64decode(before))
            images += 1
    return Undone(str(level["what"]), restored, newer, images)


def _levels(folder: Path) -> list[Path]:
    return sorted((folder / paths.CACHE / "undo").glob("*.json"))
