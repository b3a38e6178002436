"""Caption tools of the Images tab: find and replace, a template, captions written by a model. The first two preview.

They change files only; the handlers in `images` redraw the grid.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from trainer.data import caption_edits
from trainer.data.captions import one_line
from trainer.errors import UserError
from trainer.i18n import _
from ui.state import page_memory, projects
from ui.tabs import caption_models, image_grid
from ui.tabs.caption_models import Writer
from ui.templates import render
from ui.widgets.fields import field
from ui.widgets.handlers import CHOICE, listen

TEMPLATE = "{trigger}, {class}, {caption}"


@dataclass(frozen=True)
class Tools:
    """The components: fields, buttons, and the places for previews and progress."""

    find: gr.Textbox
    replacement: gr.Textbox
    replace: gr.Button
    replacing: gr.HTML
    template: gr.Textbox
    noun: gr.Textbox
    fill: gr.Button
    filling: gr.HTML
    writer: Writer

    @property
    def outputs(self) -> dict[str, Any]:
        """The components that `show` returns values for."""
        return {"noun": self.noun, "replacing": self.replacing, "filling": self.filling, **self.writer.outputs}


def build() -> Tools:
    """Draw the tools."""
    with (
        gr.Accordion(_("Edit many captions"), open=False, elem_id="bulk"),
        gr.Tabs(elem_id="bulk-tabs", overflow_behavior="wrap"),
    ):
        with gr.Tab(_("Find and replace")):
            replace = _find_and_replace()
            replacing = gr.HTML(elem_id="replacing")
        with gr.Tab(_("Fill in a template")):
            template = _template()
            filling = gr.HTML(elem_id="filling")
        with gr.Tab(_("Written by a model")):
            writer = caption_models.build()
    return Tools(*replace, replacing, *template, filling, writer)


def _find_and_replace() -> tuple[gr.Textbox, gr.Textbox, gr.Button]:
    with gr.Row(elem_classes="bottom"):
        return (
            field(gr.Textbox, "find", _("Find"), max_lines=1),
            field(gr.Textbox, "replacement", _("Replace with"), max_lines=1),
            gr.Button(_("Replace in all"), elem_id="replace"),
        )


def _template() -> tuple[gr.Textbox, gr.Textbox, gr.Button]:
    current, thing = _("{caption} stands for the current caption."), _("What it is: a woman, a cat, a robot.")
    with gr.Row(elem_classes="bottom"):
        return (
            field(gr.Textbox, "template", _("Template"), current, value=TEMPLATE, max_lines=1, scale=2),
            field(gr.Textbox, "class", _("Class"), thing, max_lines=1, scale=1),
            gr.Button(_("Fill in all"), elem_id="fill", scale=1),
        )


def connect(tools: Tools, project: gr.Textbox, trigger: gr.Textbox) -> None:
    """Connect what changes no captions: the previews, and what belongs to the model."""
    find = {"project": project, "find": tools.find, "replacement": tools.replacement}
    edited = [tools.find.change, tools.replacement.change]
    listen(edited, preview_replace, find, {"replacing": tools.replacing}, kind=CHOICE)
    template = {"project": project, "trigger": trigger, "template": tools.template, "noun": tools.noun}
    edited = [tools.template.change, tools.noun.change]
    listen(edited, preview_fill, template, {"filling": tools.filling}, kind=CHOICE)
    caption_models.connect(tools.writer, project)


def show(project: str) -> dict[str, Any]:
    """Return values of `Tools.outputs` for a project."""
    noun = page_memory.answer(project, "class") if project else ""
    return {"noun": noun, **caption_models.show(project)}


# Edits ----------------------------------------------------------------------------------------------------------


def preview_replace(project: str, find: str, replacement: str) -> dict[str, str]:
    """Preview a find and replace."""
    if not find or not project:
        return {"replacing": ""}
    edits = caption_edits.preview(projects.folder(project), caption_edits.replace_text(find, replacement or ""))
    return {"replacing": image_grid.changes(edits)}


def preview_fill(project: str, trigger: str, template: str, noun: str) -> dict[str, str]:
    """Preview a template, or explain why it cannot be used."""
    if not project:
        return {"filling": ""}
    try:
        change = filled(trigger, template, noun)
    except UserError as error:
        return {"filling": render("said.html", role="status", look="quiet", text=str(error))}
    return {"filling": image_grid.changes(caption_edits.preview(projects.folder(project), change))}


def replaced(find: str, replacement: str) -> caption_edits.Change:
    """Return the change of a find and replace.

    Raises:
        UserError: there is no text to find.
    """
    if not find:
        raise UserError("There is nothing to find.", "Type the text to replace.")
    return caption_edits.replace_text(find, replacement or "")


def filled(trigger: str, template: str, noun: str) -> caption_edits.Change:
    """Return the change of a template.

    Raises:
        UserError: the template cannot be used.
    """
    return caption_edits.fill_template(*(one_line(text or "") for text in (template, trigger, noun)))
