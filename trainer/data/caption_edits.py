"""Changes to many captions at once: shown before they are made, made, and taken back. Also: which tags there are.

What was changed lies in the data set's cache, so that it can be taken back later, also after a restart.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer import storage
from trainer.data import dataset
from trainer.errors import UserError

Change = Callable[[str], str]
LEVELS = 20
FIELDS = ("trigger", "class", "caption")


@dataclass(frozen=True)
class Edit:
    """The caption of one picture (the file's name) before and after a change."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Undone:
    """Result of an undo: the change, captions restored, and captions left alone because they were edited since."""

    what: str
    captions: int
    newer: int


def edits(folder: Path, change: Change, names: Iterable[str] | None = None) -> list[Edit]:
    """Preview a change: return the captions that would differ. `names` limits it to these images."""
    wanted = None if names is None else set(names)
    found = []
    for path in dataset.pictures(folder):
        if wanted is None or path.name in wanted:
            before = dataset.read_caption(path)
            after = dataset.one_line(change(before))
            if after != before:
                found.append(Edit(path.name, before, after))
    return found


def make(folder: Path, changes: list[Edit], what: str) -> None:
    """Change captions. `what` says it for people, as in "Undo: `what`"."""
    if not changes:
        return
    place = folder / dataset.CACHE / "undo"
    place.mkdir(parents=True, exist_ok=True)
    level = {"what": what, "captions": {edit.name: [edit.before, edit.after] for edit in changes}}
    with dataset.captions_lock(folder):
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        storage.write(place / f"{stamp}.json", json.dumps(level))
        for old in _levels(folder)[:-LEVELS]:
            old.unlink()
        for edit in changes:
            dataset.write_caption(folder / edit.name, edit.after)


def last(folder: Path) -> str:
    """Return the title of the change that `undo` would revert; "" if there is none."""
    for path in reversed(_levels(folder)):
        if level := _read(path):
            return str(level["what"])
    return ""


def undo(folder: Path) -> Undone | None:
    """Take back the change made last; None if there is none. A caption that was changed since stays as it is."""
    with dataset.captions_lock(folder):
        return _undo(folder)


def _undo(folder: Path) -> Undone | None:
    for path in reversed(_levels(folder)):
        level = _read(path)
        if level is None:
            path.unlink()
            continue
        there = {one.name for one in dataset.pictures(folder)}
        captions = {name: pair for name, pair in level["captions"].items() if name in there}
        same = {name: before for name, (before, after) in captions.items()
                if dataset.read_caption(folder / name) == after}  # fmt: skip
        for name, before in same.items():
            dataset.write_caption(folder / name, before)
        path.unlink()
        return Undone(str(level["what"]), len(same), len(captions) - len(same))
    return None


def _levels(folder: Path) -> list[Path]:
    return sorted((folder / dataset.CACHE / "undo").glob("*.json"))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        level = json.loads(path.read_text(encoding="utf-8"))
        return level if {"what", "captions"} <= level.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


# Changes --------------------------------------------------------------------------------------------------------


def in_front(trigger: str) -> Change:
    """Puts the trigger word in front of a caption that lacks it."""
    return lambda caption: dataset.with_trigger(caption, trigger)


def replaced(find: str, replacement: str) -> Change:
    """Replaces a text; when that leaves nothing between two commas, they become one."""

    def change(caption: str) -> str:
        after = caption.replace(find, replacement)
        return tidy(after) if after != caption else caption

    return change


def with_tag(tag: str) -> Change:
    """Puts a tag at the end of a caption that lacks it."""
    return lambda caption: caption if tag.lower() in caption.lower() else ", ".join(filter(None, (caption, tag)))


def filled(template: str, trigger: str, noun: str) -> Change:
    """Makes each caption by a template, such as "{trigger}, {class}, {caption}".

    {caption} is what the caption says already, without the trigger and without what the template itself says, so that
    filling in twice does no harm.

    Raises:
        UserError: the template names something else, or has no {caption}, so that all captions would be lost.
    """
    asked = re.findall(r"\{([^{}]*)\}", template)
    unknown = [one for one in asked if one not in FIELDS]
    if unknown:
        raise UserError(
            "The template cannot fill in {{{name}}}.", "Use {{trigger}}, {{class}} and {{caption}}.", name=unknown[0]
        )
    if "caption" not in asked:
        raise UserError("The template has no {caption}.", "Add it, so that what is written already is kept.")
    around = template.replace("{trigger}", trigger).replace("{class}", noun)
    own = {part.strip().lower() for part in around.replace("{caption}", ",").split(",")}

    def change(caption: str) -> str:
        rest = [part.strip() for part in dataset.without_trigger(caption, trigger).split(",")]
        return tidy(around.replace("{caption}", ", ".join(part for part in rest if part.lower() not in own)))

    return change


def tidy(caption: str) -> str:
    """A caption without empty parts between its commas."""
    return ", ".join(part for part in map(str.strip, caption.split(",")) if part)


def tags(captions: Iterable[str]) -> Counter[str]:
    """Count the captions that have each tag, that is each part between commas."""
    return Counter(tag for caption in captions for tag in set(split(caption)))


def split(caption: str) -> list[str]:
    """The tags of a caption."""
    return [part for part in map(str.strip, caption.split(",")) if part]
