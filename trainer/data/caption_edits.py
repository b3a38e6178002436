"""Changes to many captions at once, with preview and undo; proposals of a model; and the tags of captions."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer import foreign_text, paths, storage
from trainer.data import dataset, undo
from trainer.data.captions import contains_trigger, one_line, read_text, with_trigger, without_trigger
from trainer.errors import UserError

Change = Callable[[str], str]
FIELDS = ("trigger", "class", "caption")
PROPOSALS = "proposals.json"  # in the cache of the dataset
PROPOSALS_TITLE = "automatic captions"


@dataclass(frozen=True)
class Edit:
    """The caption of one image (the file's name) before and after a change."""

    name: str
    before: str
    after: str


def preview(
    folder: Path, change: Change, names: Iterable[str] | None = None, *, without: Collection[str] = ()
) -> list[Edit]:
    """Preview a change of each line: return the captions that would differ. `names` limits it to these images."""
    selected = None if names is None else set(names)
    edits = []
    for path in dataset.image_files(folder):
        if path.name not in without and (selected is None or path.name in selected):
            before = read_text(path)
            after = "\n".join(filter(None, (one_line(change(line)) for line in before.split("\n"))))
            if after != before:
                edits.append(Edit(path.name, before, after))
    return edits


def apply(folder: Path, edits: list[Edit], title: str) -> None:
    """Change captions. `title` names the change for the user, as in "Undo: `title`"."""
    if not edits:
        return
    with dataset.captions_lock(folder):
        undo.record(folder, title, captions={edit.name: [edit.before, edit.after] for edit in edits})
        for edit in edits:
            dataset.write_caption(folder / edit.name, edit.after)


# Changes --------------------------------------------------------------------------------------------------------


def add_trigger(trigger: str) -> Change:
    """Return a change that puts the trigger word in front of a caption that lacks it."""
    return lambda caption: with_trigger(caption, trigger)


def replace_text(find: str, replacement: str) -> Change:
    """Return a change that replaces a text; if that leaves nothing between two commas, they become one."""

    def change(caption: str) -> str:
        after = caption.replace(find, replacement)
        return tidy(after) if after != caption else caption

    return change


def add_tag(tag: str) -> Change:
    """Return a change that puts a tag at the end of a caption that lacks it."""

    def change(caption: str) -> str:
        if contains_trigger(caption, tag):  # as words of their own
            return caption
        return f"{caption}, {tag}" if caption else tag

    return change


def replace_tag(tag: str, replacement: str) -> Change:
    """Return a change that replaces a whole tag, in any case of its letters; with "" it removes it."""

    def change(caption: str) -> str:
        tags = split_tags(caption)
        if tag.lower() not in map(str.lower, tags):
            return caption
        return tidy(", ".join(replacement if part.lower() == tag.lower() else part for part in tags))

    return change


def fill_template(template: str, trigger: str, noun: str) -> Change:
    """Return a change that makes each caption by a template, such as "{trigger}, {class}, {caption}".

    {caption} is the present caption without the trigger and without the words of the template itself, so that
    filling in twice does no harm.

    Raises:
        UserError: the template has an unknown field, or no {caption}, so that all captions would be lost.
    """
    fields = re.findall(r"\{([^{}]*)\}", template)
    for field in fields:
        if field not in FIELDS:
            raise UserError(
                "The template has an unknown field {{{name}}}.",
                "Use {{trigger}}, {{class}} and {{caption}}.",
                name=field,
            )
    if "caption" not in fields:
        raise UserError("The template has no {caption}.", "Add it, or the present captions would be lost.")
    around = template.replace("{trigger}", trigger).replace("{class}", noun)
    own = {part.strip().lower() for part in around.replace("{caption}", ",").split(",")}

    def change(caption: str) -> str:
        parts = [part.strip() for part in without_trigger(caption, trigger).split(",")]
        rest = ", ".join(part for part in parts if part.lower() not in own)
        return tidy(around.replace("{caption}", rest))

    return change


def tidy(caption: str) -> str:
    """Return a caption without empty parts between its commas."""
    return ", ".join(split_tags(caption))


def count_tags(captions: Iterable[str]) -> Counter[str]:
    """Count the captions that have each tag, that is each part between commas."""
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(set(split_tags(caption)))
    return counts


def split_tags(caption: str) -> list[str]:
    """Return the tags of a caption."""
    return [part for part in map(str.strip, caption.split(",")) if part]


def read_proposals(folder: Path) -> dict[str, Edit]:
    """Return what a model proposed, by the name of the image; `before` is the caption that was there at that time."""
    data = foreign_text.read_own_json(folder / paths.CACHE / PROPOSALS)
    return {row["name"]: Edit(**row) for row in data or ()}


def propose(folder: Path, edits: Sequence[Edit]) -> None:
    """Add proposals; one that an image had before is replaced."""
    with dataset.captions_lock(folder):
        _write_proposals(folder, read_proposals(folder) | {edit.name: edit for edit in edits})


def keep_proposals(folder: Path, names: Collection[str] | None = None) -> int:
    """Save the proposals of some images as their captions, as one change that can be undone; return how many.

    Without names these are all but those of images whose caption was changed since: they wait for a decision.
    """
    with dataset.captions_lock(folder):
        proposed, present = read_proposals(folder), {path.name for path in dataset.image_files(folder)}
        kept = []
        for name in present & set(proposed if names is None else names) & set(proposed):
            before = read_text(folder / name)
            if names is not None or one_line(before) == one_line(proposed[name].before):
                kept.append(Edit(name, before, proposed[name].after))
        apply(folder, sorted(kept, key=lambda edit: edit.name), PROPOSALS_TITLE)
        decided = {edit.name for edit in kept}
        _write_proposals(folder, {name: edit for name, edit in proposed.items() if name in present - decided})
    return len(kept)


def discard_proposals(folder: Path, names: Collection[str] | None = None) -> None:
    """Discard the proposals of some images, or all of them."""
    with dataset.captions_lock(folder):
        left = {}
        if names is not None:
            left = {name: edit for name, edit in read_proposals(folder).items() if name not in names}
        _write_proposals(folder, left)


def _write_proposals(folder: Path, proposed: dict[str, Edit]) -> None:
    path = folder / paths.CACHE / PROPOSALS
    if proposed:
        storage.write(path, json.dumps([asdict(edit) for edit in proposed.values()]))
    else:
        storage.remove(path)
