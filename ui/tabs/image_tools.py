"""Tools of the viewer for an image of a dataset: rotate, crop, restore the original. image_tools.js calls them."""

from typing import Any

from trainer.data import buckets, dataset, image_edits, undo
from trainer.data.image_edits import Box, Edit
from trainer.errors import UserError
from trainer.i18n import _
from ui.state import page_memory, projects
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
    if not project.resolution or min(width, height) < image_edits.SMALLEST:
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
