"""Caption tools of the Images tab: find and replace, a template, captions written by a model. The first two preview.

They change files only; the handlers in `images` redraw the grid.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from trainer import captioning, runs
from trainer.captioning import CaptionConfig
from trainer.data import caption_edits
from trainer.data.captions import one_line
from trainer.errors import UserError
from trainer.i18n import _, ngettext
from trainer.runs import control
from ui.state import page_memory, projects
from ui.tabs import image_grid
from ui.widgets import run_html
from ui.widgets.handlers import QUIET, handled

TEMPLATE = "{trigger}, {class}, {caption}"
EXISTING = [
    (_("Leave them as they are"), "keep"),
    (_("Add the new text after them"), "add"),
    (_("Replace them (you can undo it)"), "replace"),
]


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
    model: gr.Textbox
    existing: gr.Radio
    write: gr.Button
    stop: gr.Button
    writing: gr.HTML
    timer: gr.Timer

    @property
    def outputs(self) -> list[Any]:
        """Components that `show` returns values for."""
        return [self.noun, self.model, self.replacing, self.filling, *self.live]

    @property
    def live(self) -> list[Any]:
        """Components that `draw` returns values for."""
        return [self.writing, self.write, self.stop, self.timer]


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
            model = _automatic()
            writing = gr.HTML(elem_id="writing")
    timer = gr.Timer(1, active=False)
    return Tools(*replace, replacing, *template, filling, *model, writing, timer)


def _find_and_replace() -> tuple[gr.Textbox, gr.Textbox, gr.Button]:
    with gr.Row(elem_classes="bottom"):
        find = gr.Textbox(label=_("Find"), max_lines=1, elem_id="find", interactive=True)
        replacement = gr.Textbox(label=_("Replace with"), max_lines=1, elem_id="replacement", interactive=True)
        replace = gr.Button(_("Replace in all"), elem_id="replace")
    return find, replacement, replace


def _template() -> tuple[gr.Textbox, gr.Textbox, gr.Button]:
    with gr.Row(elem_classes="bottom"):
        template = gr.Textbox(
            TEMPLATE,
            label=_("Template"),
            info=_("{caption} stands for the current caption."),
            max_lines=1,
            elem_id="template",
            interactive=True,
            scale=2,
        )
        noun = gr.Textbox(
            label=_("Class"),
            info=_("What it is: a woman, a cat, a robot."),
            max_lines=1,
            elem_id="class",
            interactive=True,
            scale=1,
        )
        fill = gr.Button(_("Fill in all"), elem_id="fill", scale=1)
    return template, noun, fill


def _automatic() -> tuple[gr.Textbox, gr.Radio, gr.Button, gr.Button]:
    with gr.Row(equal_height=False):
        model = gr.Textbox(
            label=_("Caption model"),
            info=_(
                "Name on the Hugging Face Hub, such as {model}, or a folder on this machine.",
                model=captioning.SUGGESTED,
            ),
            max_lines=1,
            elem_id="caption-model",
            interactive=True,
        )
        existing = gr.Radio(EXISTING, value="keep", label=_("Existing captions"), elem_id="existing", interactive=True)
    with gr.Row(elem_classes="tools"):
        write = gr.Button(_("Write captions"), elem_id="write", size="sm")
        stop = gr.Button(_("Stop and keep finished captions"), elem_id="write-stop", size="sm", visible=False)
    return model, existing, write, stop


def connect(tools: Tools, project: gr.Dropdown, trigger: gr.Textbox) -> None:
    """Connect what changes no captions: the previews, and the button that stops the model."""
    latest = {"trigger_mode": "always_last", **QUIET}
    find_and_replace = [project, tools.find, tools.replacement]
    edited = [tools.find.change, tools.replacement.change]
    gr.on(edited, handled(preview_replace), find_and_replace, tools.replacing, **latest)
    template = [project, trigger, tools.template, tools.noun]
    gr.on([tools.template.change, tools.noun.change], handled(preview_fill), template, tools.filling, **latest)
    tools.stop.click(handled(stop), project, tools.live, **QUIET)


def show(project: str) -> list[Any]:
    """Return values of `Tools.outputs` for a project."""
    noun, model = "", ""
    if project:
        noun, model = page_memory.answer(project, "class"), page_memory.answer(project, "caption-model")
    return [noun, model, "", "", *draw(project)]


# Edits ----------------------------------------------------------------------------------------------------------


def preview_replace(project: str, find: str, replacement: str) -> str:
    """Preview a find and replace."""
    if not find or not project:
        return ""
    edits = caption_edits.preview(projects.folder(project), caption_edits.replace_text(find, replacement or ""))
    return image_grid.changes(edits)


def preview_fill(project: str, trigger: str, template: str, noun: str) -> str:
    """Preview a template, or explain why it cannot be used."""
    if not project:
        return ""
    try:
        change = filled(trigger, template, noun)
    except UserError as error:
        return f"<p class='quiet' role='status'>{escape(str(error))}</p>"
    return image_grid.changes(caption_edits.preview(projects.folder(project), change))


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


# Captions by a model --------------------------------------------------------------------------------------------


def start(project: str, model: str, existing: str, execute: Callable[[runs.Run], None] = runs.start) -> list[Any]:
    """Start a run that writes captions; returns values of `Tools.live`."""
    projects.folder(project)
    if is_writing(project):
        raise UserError("Captions are already being written.", "Wait until they are finished, or stop them first.")
    name = one_line(model or "")
    if not name:
        raise UserError(
            "No caption model is chosen.", "Type the name of one, such as {suggested}.", suggested=captioning.SUGGESTED
        )
    run = captioning.create(CaptionConfig(dataset=project, model=name, existing=existing))
    page_memory.remember(project, "caption-model", name)
    execute(run)
    return draw(project)


def stop(project: str) -> list[Any]:
    """Ask the model to stop, or end it if it did not react; finished captions are kept."""
    run = captioning.newest(project)
    if run:
        control.stop(run)
    return draw(project)


def is_writing(project: str) -> bool:
    """Tell whether a model is writing captions for a project."""
    view = _view(project)
    return view is not None and view.status in runs.ACTIVE


def draw(project: str) -> list[Any]:
    """Return values of `Tools.live`: the progress of the model, and the buttons."""
    view = _view(project)
    status, active, label = "", False, _("Stop and keep finished captions")
    if view:
        status, active = _status(view), view.status in runs.ACTIVE
        if view.is_unresponsive(time.time()):
            label = _("End now")
    return [status, gr.Button(visible=not active), gr.Button(label, visible=active), gr.Timer(active=active)]


def _view(project: str) -> runs.View | None:
    """Return the newest captioning run of a project."""
    run = captioning.newest(project) if project else None
    return runs.look(run) if run else None


def _status(view: runs.View) -> str:
    state, phase = view.state, view.state.phase
    match view.status:
        case "failed":
            return f"<div class='alarm' role='alert'><b>{escape(state.message)}</b> {escape(state.remedy)}</div>"
        case "finished" | "stopped":
            written = sum(1 for text in captioning.read_captions(view.run).values() if text)
            text = ngettext(
                "{state}: {n} caption was written.",
                "{state}: {n} captions were written.",
                written,
                state=runs.STATUS_LABELS[view.status],
            )
            return f"<p class='quiet' role='status'>{text}</p>"
        case "interrupted":
            text = _("It was interrupted, and no caption was changed. Start it again.")
            return f"<p class='quiet' role='status'>{text}</p>"
    if phase is None:
        return _progress(run_html.status_label(view), 0.0)
    share = phase.done / phase.total if phase.total else 0.0
    return _progress(run_html.phase(phase), share)


def _progress(text: str, share: float) -> str:
    value = f"aria-valuemin='0' aria-valuemax='100' aria-valuenow='{100 * share:.0f}' aria-label='{_('Captions')}'"
    bar = f"<div class='bar' role='progressbar' {value}><i style='width:{share:.1%}'></i></div>"
    return f"<p role='status'>{escape(text)}</p>{bar}"
