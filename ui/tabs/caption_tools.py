"""Help with captions: find and replace, a template, captions written by a model. The first two show what they will do.

What is drawn here changes files only; the grid is drawn anew by who connects it.
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
from trainer.i18n import count, say
from trainer.runs import control
from ui.state import page_memory
from ui.tabs import image_grid
from ui.widgets import run_html
from ui.widgets.handlers import QUIET, handled

TEMPLATE = "{trigger}, {class}, {caption}"
EXISTING = [
    (say("Leave them as they are"), "keep"), (say("Put the new words after them"), "add"),
    (say("Replace them (you can undo it)"), "replace"),
]  # fmt: skip


@dataclass(frozen=True)
class Tools:
    """The components: fields, buttons, and where they show what they will do."""

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
    def shown(self) -> list[Any]:
        """Components that `show` gives values for."""
        return [self.noun, self.model, self.replacing, self.filling, *self.live]

    @property
    def live(self) -> list[Any]:
        """Components that `draw` gives values for."""
        return [self.writing, self.write, self.stop, self.timer]


def build() -> Tools:
    """Draw the tools."""
    with (
        gr.Accordion(say("Change many captions"), open=False, elem_id="bulk"),
        gr.Tabs(elem_id="bulk-tabs", overflow_behavior="wrap"),
    ):
        with gr.Tab(say("Find and replace")):
            with gr.Row(elem_classes="bottom"):
                find = gr.Textbox(label=say("Find"), max_lines=1, elem_id="find", interactive=True)
                replacement = gr.Textbox(
                    label=say("Replace with"), max_lines=1, elem_id="replacement", interactive=True
                )
                replace = gr.Button(say("Replace in all"), elem_id="replace")
            replacing = gr.HTML(elem_id="replacing")
        with gr.Tab(say("Fill in a template")):
            template, noun, fill = _template()
            filling = gr.HTML(elem_id="filling")
        with gr.Tab(say("Written by a model")):
            model, existing, write, stop = _automatic()
            writing = gr.HTML(elem_id="writing")
    return Tools(
        find, replacement, replace, replacing, template, noun, fill, filling, model, existing, write, stop, writing,
        gr.Timer(1, active=False),
    )  # fmt: skip


def _template() -> tuple[gr.Textbox, gr.Textbox, gr.Button]:
    with gr.Row(elem_classes="bottom"):
        template = gr.Textbox(
            TEMPLATE, label=say("Template"), info=say("{caption} is what is written already."), max_lines=1,
            elem_id="template", interactive=True, scale=2,
        )  # fmt: skip
        noun = gr.Textbox(
            label=say("Class"), info=say("What it is: a woman, a cat, a robot."), max_lines=1, elem_id="class",
            interactive=True, scale=1,
        )  # fmt: skip
        fill = gr.Button(say("Fill in all"), elem_id="fill", scale=1)
    return template, noun, fill


def _automatic() -> tuple[gr.Textbox, gr.Radio, gr.Button, gr.Button]:
    with gr.Row(equal_height=False):
        model = gr.Textbox(
            label=say("Caption model"), max_lines=1, elem_id="caption-model", interactive=True,
            info=say(
                "Name on the Hugging Face hub, such as {model}, or a folder on this machine.",
                model=captioning.SUGGESTED,
            ),
        )  # fmt: skip
        existing = gr.Radio(
            EXISTING, value="keep", label=say("Captions that are there already"), elem_id="existing", interactive=True
        )
    with gr.Row(elem_classes="tools"):
        write = gr.Button(say("Write captions"), elem_id="write", size="sm")
        stop = gr.Button(say("Stop and keep what is written"), elem_id="write-stop", size="sm", visible=False)
    return model, existing, write, stop


def connect(tools: Tools, project: gr.Dropdown, trigger: gr.Textbox) -> None:
    """Connect what changes no captions: the views of what will be done, and the start and stop of a model."""
    gr.on(
        [tools.find.change, tools.replacement.change], handled(preview_replace),
        [project, tools.find, tools.replacement], tools.replacing, trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    gr.on(
        [tools.template.change, tools.noun.change], handled(preview_fill),
        [project, trigger, tools.template, tools.noun], tools.filling, trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    tools.stop.click(handled(stop), project, tools.live, **QUIET)


def show(project: str) -> list[Any]:
    """Values of `Tools.shown` for a project."""
    if not project:
        return ["", "", "", "", *draw("")]
    return [page_memory.answer(project, "class"), page_memory.answer(project, "caption-model"), "", "", *draw(project)]


# Changes --------------------------------------------------------------------------------------------------------


def preview_replace(project: str, find: str, replacement: str) -> str:
    """Preview a find and replace."""
    if not find or not project:
        return ""
    folder = image_grid.folder_of(project)
    return image_grid.changes(caption_edits.preview(folder, caption_edits.replace_text(find, replacement or "")))


def preview_fill(project: str, trigger: str, template: str, noun: str) -> str:
    """Preview a template; one that cannot be used is explained."""
    if not project:
        return ""
    try:
        change = filled(trigger, template, noun)
    except UserError as error:
        return f"<p class='quiet' role='status'>{escape(str(error))}</p>"
    return image_grid.changes(caption_edits.preview(image_grid.folder_of(project), change))


def replaced(find: str, replacement: str) -> caption_edits.Change:
    """The change that find and replace asks for.

    Raises:
        UserError: it is not said what to find.
    """
    if not find:
        raise UserError("There is nothing to find.", "Type the text to replace.")
    return caption_edits.replace_text(find, replacement or "")


def filled(trigger: str, template: str, noun: str) -> caption_edits.Change:
    """The change that the template asks for.

    Raises:
        UserError: the template cannot be used.
    """
    words = one_line(trigger or ""), one_line(noun or "")
    return caption_edits.fill_template(one_line(template or ""), *words)


# Captions by a model --------------------------------------------------------------------------------------------


def start(project: str, model: str, existing: str, begin: Callable[[runs.Run], None] = runs.start) -> list[Any]:
    """Start a run that writes captions; returns values of `Tools.live`."""
    image_grid.folder_of(project)
    running = captioning.newest(project)
    if running and runs.look(running).status in runs.ACTIVE:
        raise UserError("Captions are being written already.", "Wait for them, or stop that first.")
    name = one_line(model or "")
    if not name:
        raise UserError(
            "No caption model is chosen.", "Type the name of one, such as {suggested}.", suggested=captioning.SUGGESTED
        )
    run = captioning.create(CaptionConfig(dataset=project, model=name, existing=existing))
    page_memory.remember(project, "caption-model", name)
    begin(run)
    return draw(project)


def stop(project: str) -> list[Any]:
    """Ask the model to stop, or end it if it did not hear that; what it has written is kept."""
    run = captioning.newest(project)
    if run:
        control.stop(run)
    return draw(project)


def is_writing(project: str) -> bool:
    """Tell whether a model is writing captions for a project."""
    run = captioning.newest(project) if project else None
    return run is not None and runs.look(run).status in runs.ACTIVE


def draw(project: str) -> list[Any]:
    """Values of `Tools.live`: how far the model is, and what can be done."""
    run = captioning.newest(project) if project else None
    view = runs.look(run) if run else None
    active = view is not None and view.status in runs.ACTIVE
    told = _told(view) if view else ""
    deaf = view is not None and view.is_unresponsive(time.time())
    words = say("End now") if deaf else say("Stop and keep what is written")
    return [told, gr.Button(visible=not active), gr.Button(words, visible=active), gr.Timer(active=active)]


def _told(view: runs.View) -> str:
    state, phase = view.state, view.state.phase
    match view.status:
        case "failed":
            return f"<div class='alarm' role='alert'><b>{escape(state.message)}</b> {escape(state.remedy)}</div>"
        case "finished" | "stopped":
            written = sum(1 for text in captioning.read_captions(view.run).values() if text)
            told = count("{state}: {n} caption was written.", "{state}: {n} captions were written.", written,
                         state=run_html.WORDS[view.status])  # fmt: skip
            return f"<p class='quiet' role='status'>{told}</p>"
        case "interrupted":
            told = say("It was interrupted. Start it again; nothing was changed.")
            return f"<p class='quiet' role='status'>{told}</p>"
    text = run_html.phase(phase) if phase else run_html.word(view)
    share = phase.done / phase.total if phase and phase.total else 0.0
    value = f"aria-valuemin='0' aria-valuemax='100' aria-valuenow='{100 * share:.0f}' aria-label='{say('Captions')}'"
    bar = f"<div class='bar' role='progressbar' {value}><i style='width:{share:.1%}'></i></div>"
    return f"<p role='status'>{escape(text)}</p>{bar}"
