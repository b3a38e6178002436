"""Fixes that the program itself can apply to problems of a dataset.

Captions can be taken back by `caption_edits.undo`, what is removed lies in the bin.
"""

from collections.abc import Sequence
from pathlib import Path

from trainer import storage
from trainer.data import caption_edits, checks, dataset, image_stats
from trainer.data.checks import Problem
from trainer.errors import UserError
from trainer.i18n import count, say


def apply(folder: Path, found: Sequence[Problem], kind: str, trigger: str = "") -> str:
    """Do what can be done about all problems of a kind; returns what was done, in a sentence.

    Raises:
        UserError: nothing can be done by itself, or there are no such problems.
    """
    names = [one.name for one in found if one.kind == kind]
    if not names:
        raise UserError("This is not so any more.", "Nothing was changed.")
    match checks.KINDS[kind].action:
        case "trigger":
            changes = caption_edits.edits(folder, caption_edits.in_front(trigger), names)
            caption_edits.make(folder, changes, say("put {word!r} in front", word=trigger))
            return count(
                "Put {word!r} in front of {n} caption.", "Put {word!r} in front of {n} captions.", len(changes),
                word=trigger,
            )  # fmt: skip
        case "backdrop":
            return _name_backdrop(folder)
        case "rename":
            return _part(folder, names)
        case "remove" | "tidy":
            dataset.remove(*(folder / name for name in names))
            return count(
                "Removed {n} file; you can bring it back.", "Removed {n} files; you can bring them back.", len(names)
            )
        case _:
            raise UserError("The program cannot do this for you.", checks.KINDS[kind].remedy)


def _name_backdrop(folder: Path) -> str:
    """Put the colour of the shared background at the end of the captions of the pictures that have it."""
    names, colour = checks.backdrop(dataset.read(folder), image_stats.known(folder))
    tag = f"{colour} background"
    changes = caption_edits.edits(folder, caption_edits.with_tag(tag), names if colour else ())
    caption_edits.make(folder, changes, say("add {tag!r}", tag=tag))
    return count("Added {tag!r} to {n} caption.", "Added {tag!r} to {n} captions.", len(changes), tag=tag)


def _part(folder: Path, captions: Sequence[str]) -> str:
    """Give all but the first of the pictures that share a caption file another name, and a copy of the caption."""
    renamed = []
    for name in captions:
        stem = Path(name).stem
        for path in [picture for picture in dataset.pictures(folder) if picture.stem == stem][1:]:
            with dataset.upload_lock(folder):  # so that the free name stays free
                new = dataset.free_path(folder, path.stem, path.suffix)
                if caption := dataset.read_caption(path):  # first, so that no image is ever without its caption
                    storage.write(dataset.caption_file(new), caption + "\n")
                if mask := dataset.read_mask(path):
                    storage.write(dataset.mask_file(new), mask)
                path.replace(new)
            renamed.append(new.name)
    names = ", ".join(renamed[:8])
    return count("Renamed {n} picture: {names}.", "Renamed {n} pictures: {names}.", len(renamed), names=names)
