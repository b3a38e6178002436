"""Fixes that the program can apply to problems of a dataset.

Changed captions and masks are restored by `undo`; removed files are moved to the bin.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from trainer import storage
from trainer.data import caption_edits, checks, dataset, image_edits, image_stats, undo
from trainer.data.captions import caption_file, read_text
from trainer.data.problems import KINDS, Problem
from trainer.errors import UserError
from trainer.i18n import _, ngettext


def apply_fix(
    folder: Path, problems: Sequence[Problem], kind: str, trigger: str = "", *, without: Collection[str] = ()
) -> str:
    """Fix all problems of a kind, but leave the captions `without` as they are; returns what was done, in a sentence.

    Raises:
        UserError: there is no automatic fix, or there are no such problems.
    """
    names = [problem.name for problem in problems if problem.kind == kind]
    if not names:
        raise UserError("This has already been fixed.", "Nothing was changed.")
    match KINDS[kind].action:
        case "trigger":
            edits = caption_edits.preview(folder, caption_edits.add_trigger(trigger), names, without=without)
            caption_edits.apply(folder, edits, _("put {word!r} in front", word=trigger))
            return ngettext(
                "Put {word!r} in front of {n} caption.",
                "Put {word!r} in front of {n} captions.",
                len(edits),
                word=trigger,
            )
        case "background":
            return _name_background(folder, without)
        case "mask":
            made = image_edits.masks_from_transparency(folder / name for name in names)
            undo.edit_masks(folder, made, _("masks from transparency"))
            return ngettext("Made {n} mask from transparency.", "Made {n} masks from transparency.", len(made))
        case "rename":
            return _separate_captions(folder, names)
        case "remove":
            dataset.remove(*(folder / name for name in names))
            return ngettext(
                "Removed {n} file; you can bring it back.", "Removed {n} files; you can bring them back.", len(names)
            )
        case _:
            raise UserError("There is no automatic fix for this.", KINDS[kind].remedy)


def _name_background(folder: Path, without: Collection[str]) -> str:
    """Put the color of the shared background at the end of the captions of the images that have it."""
    names, color = checks.shared_background(dataset.read(folder), image_stats.known(folder))
    tag = f"{color} background"
    edits = caption_edits.preview(folder, caption_edits.add_tag(tag), names if color else (), without=without)
    caption_edits.apply(folder, edits, _("add {tag!r}", tag=tag))
    return ngettext("Added {tag!r} to {n} caption.", "Added {tag!r} to {n} captions.", len(edits), tag=tag)


def _separate_captions(folder: Path, caption_names: Sequence[str]) -> str:
    """Rename all but the first of the images that share a caption file, each with a copy of the caption."""
    renamed = []
    for name in caption_names:
        stem = Path(name).stem
        sharing = [path for path in dataset.image_files(folder) if path.stem == stem]
        for path in sharing[1:]:
            with dataset.upload_lock(folder):  # so that the free name stays free
                taken = {other.stem.lower() for other in folder.iterdir()}
                new = folder / f"{dataset.free_stem(taken, path.stem)}{path.suffix}"
                if caption := read_text(path):  # first, so that no image is ever without its caption
                    storage.write(caption_file(new), caption + "\n")
                if mask := dataset.read_mask(path):
                    storage.write(dataset.mask_file(new), mask)
                storage.replace(path, new)
            renamed.append(new.name)
    names = ", ".join(renamed[:8])
    return ngettext("Renamed {n} image: {names}.", "Renamed {n} images: {names}.", len(renamed), names=names)
