"""Tools for images of a dataset: for the one in the viewer, which image_tools.js calls, and for those selected."""

import base64
from collections.abc import Sequence
from typing import Any

from trainer.data import buckets, caption_edits, dataset, image_edits, undo
from trainer.data.captions import one_line
from trainer.data.image_edits import Box, Edit
from trainer.errors import UserError
from trainer.i18n import _, ngettext
from ui.state import page_memory, projects
from ui.state.order import UNKNOWN, Moment
from ui.tabs import image_grid
from ui.widgets.handlers import answered


@answered
def edit_image(argument: dict[str, Any]) -> dict[str, Any]:
    """Rotate, crop or restore an image; `action` says which."""
    image = projects.find_image(argument["project"], str(argument["name"]))
    with dataset.captions_lock(image.parent):
        match argument["action"]:
            case "rotate":
                edit = image_edits.current(image).rotated(int(argument["turns"]))
                title = _("rotate {name}", name=image.name)
            case "crop":
                edit, title = image_edits.crop(image, _box(argument)), _("crop {name}", name=image.name)
            case "restore":
                edit, title = Edit(), _("restore the original of {name}", name=image.name)
            case _:
                raise UserError("This image cannot be edited in this way.", "Reload the page.")
        undo.edit_images(image.parent, {image.name: edit}, title)
    return {}


@answered
def describe_crop(argument: dict[str, Any]) -> dict[str, Any]:
    """Return the size of a crop that is being chosen, and the bucket that the image would be trained in."""
    image, box = projects.find_image(argument["project"], str(argument["name"])), _box(argument)
    width, height = box[2] - box[0], box[3] - box[1]
    text = _("{width} x {height} pixels", width=width, height=height)
    project = image_grid.read(argument["project"], page_memory.answer(argument["project"], "trigger"))
    if not project.resolution or min(width, height) < image_edits.SMALLEST_CROP:
        return {"text": text}
    examples = [example for example in project.examples if example.name != image.name]
    sizes = [(example.width, example.height) for example in examples]
    bucket = buckets.buckets([*sizes, (width, height)], project.resolution)[-1]
    text += " · " + _("trained at {width} x {height}", width=bucket[0], height=bucket[1])
    if share := buckets.lost((width, height), bucket):
        text += " · " + _("{share:.0%} is cut off", share=share)
    return {"text": text}


def _box(argument: dict[str, Any]) -> Box:
    left, top, right, bottom = (round(float(value)) for value in argument["box"])
    return left, top, right, bottom


def remove(project: str, names: Sequence[str]) -> str:
    """Move images with their captions to the bin; return what was done. What is no longer there counts as removed.

    Raises:
        UserError: the project does not exist.
    """
    left = projects.remove_images(project, names)
    if not left:
        return _("These images had already been removed.")
    if len(left) == 1:
        return _("Removed {name}.", name=left[0])
    return ngettext(
        "Removed {n} file; you can bring it back.", "Removed {n} files; you can bring them back.", len(left)
    )


def change_selected(
    project: str, names: Sequence[str], action: str, tag: str = "", other: str = "", sent: Moment = UNKNOWN
) -> str:
    """Rotate the selected images, or add or replace a tag in their captions; return what was done.

    Raises:
        UserError: no image is selected, or there is no tag to add or replace.
    """
    folder = projects.folder(project)
    names = projects.remaining(project, names)
    if not names:
        raise UserError("No image is selected.", "Tick the boxes of some images first.")
    if action == "rotate":
        title = ngettext("rotate {n} image", "rotate {n} images", len(names))
        undo.edit_images(folder, image_edits.rotations(folder, names, 1), title)
        return ngettext("Rotated {n} image.", "Rotated {n} images.", len(names))
    tag, other = one_line(tag), one_line(other)
    if not tag:
        raise UserError("There is no tag yet.", "Type one.")
    title = _("add {tag!r}", tag=tag)
    edit = caption_edits.add_tag(tag)
    if action == "replace":
        title, edit = _("replace {old!r} with {new!r}", old=tag, new=other), caption_edits.replace_tag(tag, other)
    changed = projects.change_captions(project, sent, edit, title, names)
    return ngettext("Changed {n} caption: {what}.", "Changed {n} captions: {what}.", changed, what=title)


@answered
def save_mask(argument: dict[str, Any]) -> dict[str, Any]:
    """Save the mask that was drawn for an image, a PNG in base64, or make it from the image's transparency."""
    image = projects.find_image(argument["project"], str(argument["name"]))
    if argument.get("transparency"):
        mask = image_edits.mask_from_transparency(image)
        if not mask:
            raise UserError("This image has no transparent part.", "Paint the mask instead.")
    else:
        mask = image_edits.mask_from_drawing(base64.b64decode(str(argument["png"])))
    undo.edit_masks(image.parent, {image.name: mask}, _("mask {name}", name=image.name))
    return {}


def decide(project: str, action: str, name: str, sent: Moment = UNKNOWN) -> str:
    """Keep or discard the caption that a model proposes for an image, or for all without a name; say what happened."""
    folder, names = projects.folder(project), [name] if name else None
    if action == "discard":
        caption_edits.discard_proposals(folder, names)
        return _("The proposed captions were discarded.") if names is None else _("The proposed caption was discarded.")
    with projects.changing_captions(project, sent, names) as typed:
        kept = [] if name in typed else names  # typed after Keep was clicked
        number = caption_edits.keep_proposals(folder, kept)
    text = ngettext("Kept {n} proposed caption.", "Kept {n} proposed captions.", number)
    if names is None and (left := len(caption_edits.read_proposals(folder))):
        text += " " + ngettext(
            "{n} caption was changed since; decide about it below its image.",
            "{n} captions were changed since; decide about them below their images.",
            left,
        )
    return text
