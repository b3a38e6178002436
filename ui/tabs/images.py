"""Images tab: add images, edit their captions, find and fix problems. All state is in the folder of the dataset."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from trainer.data import caption_edits, dataset, fixes, image_stats, undo
from trainer.data.captions import one_line, read_text
from trainer.data.problems import KINDS
from trainer.errors import UserError
from trainer.i18n import _, ngettext
from ui.state import page_memory, projects
from ui.state.order import Moment
from ui.tabs import caption_models, caption_tools, image_grid, image_tools
from ui.tabs.caption_tools import Tools
from ui.tabs.image_grid import Selection
from ui.templates import render
from ui.widgets.fields import field
from ui.widgets.handlers import CHOICE, VIEW, Several, answered, listen
from ui.widgets.scripts import read

AT_ONCE = 24  # images that are measured in one request
# Waits until what was typed and removed last is on disk; see captions.js.
TYPED_FIRST = "async (...values) => { await window.limnerSaved?.(); return values; }"
# What the grid shows is chosen in the browser, and sent along with what is to be done.
SHOWN = "(project, trigger, _, ...rest) => [project, trigger, window.limnerSelection?.() ?? {}, ...rest]"
TYPED_AND_SHOWN = (
    f"async (...values) => {{ const sent = ({SHOWN})(...values); await window.limnerSaved?.(); return sent; }}"
)


@dataclass(frozen=True)
class Tab:
    """The components that other parts of the page read or fill; `show` returns values for `outputs`."""

    trigger: gr.Textbox
    overview: gr.HTML
    outputs: Several


@dataclass(frozen=True)
class Parts:
    """The components of the tab; `about` is what all handlers get: the project, its trigger word, what is shown."""

    about: Mapping[str, Any]
    report: gr.HTML
    added: gr.HTML
    grid: gr.HTML
    overview: gr.HTML
    summary: gr.HTML
    restore: gr.Button
    undo: gr.Button

    @property
    def view(self) -> dict[str, Any]:
        """The components that `image_grid.draw` returns values for."""
        names = ("grid", "overview", "summary", "restore", "undo")
        return {name: getattr(self, name) for name in names}

    @property
    def result(self) -> dict[str, Any]:
        """The report of a change, and the view."""
        return {"report": self.report, **self.view}


def build(project: gr.Textbox) -> Tab:
    """Draw the tab and connect it."""
    selection = gr.JSON({}, visible=False)
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=1, min_width=300, elem_classes="side"):
            added = gr.HTML(
                {}, html_template=render("uploads.html"), js_on_load=read("uploads.js"), elem_id="add-images"
            )
            made_up = _("A made-up word that calls up your character or style, such as miraxo.")
            trigger = field(gr.Textbox, "trigger", _("Trigger word"), made_up, max_lines=1)
            prefix = gr.Button(_("Add to the front of every caption"), elem_id="prefix", size="sm")
            overview = gr.HTML(
                {}, html_template=render("overview.html"), js_on_load=read("overview.js"), elem_id="overview"
            )
            tools = caption_tools.build()
            keep_location = _location()
        with gr.Column(scale=4, min_width=320, elem_classes="canvas"):
            report = gr.HTML(elem_id="report", elem_classes="report")
            with gr.Row(elem_classes="tools"):
                summary = gr.HTML(elem_id="dataset-summary")
                restore = gr.Button(_("Restore what was removed"), elem_id="restore", size="sm", visible=False)
                undo = gr.Button(_("Undo"), elem_id="undo", size="sm", visible=False)
            selected = gr.HTML(
                {}, html_template=render("selection.html"), js_on_load=read("selection.js"), elem_id="selection"
            )
            grid = gr.HTML(
                {},
                html_template=render("captions.html"),
                js_on_load=read("captions.js"),
                server_functions=[save_caption, measure, remove],
                elem_id="captions",
            )
            tools_of_viewer = gr.HTML(
                js_on_load=read("image_tools.js"),
                server_functions=[image_tools.edit_image, image_tools.describe_crop],
            )
            tools_of_masks = gr.HTML(js_on_load=read("masks.js"), server_functions=[image_tools.save_mask])
    about = {
        "project": project,
        "trigger": trigger,
        "selection": Several({"selection": selection}, lambda values: Selection.read(values["selection"])),
    }
    parts = Parts(about, report, added, grid, overview, summary, restore, undo)
    _connect_view(parts, tools)
    _connect_changes(parts, tools, prefix)
    listen(selected.apply, change_selected, about, parts.result, js=TYPED_AND_SHOWN)
    for edited in (tools_of_viewer, tools_of_masks):
        listen(edited.end, image_grid.draw, about, parts.view, js=SHOWN)
    caption_tools.connect(tools, project, trigger)
    filled = {"trigger": trigger, "keep_location": keep_location, **parts.result, **tools.outputs}
    return Tab(trigger, overview, Several(filled))


def _location() -> gr.Checkbox:
    box = field(gr.Checkbox, "keep-location", _("Keep GPS data in photos (removed by default)"))
    listen(box.input, page_memory.remember_of_page, {"keep_location": box}, kind=CHOICE)
    return box


def _connect_view(parts: Parts, tools: Tools) -> None:
    about, view = parts.about, parts.view
    listen(parts.added.end, report_change, about, parts.result, js=SHOWN)
    listen(parts.restore.click, restore_removed, about, parts.result, js=TYPED_AND_SHOWN)
    listen(parts.grid.delete, report_change, about, parts.result, js=SHOWN)
    for event in (parts.grid.select, parts.grid.end):
        listen(event, image_grid.draw, about, view, kind=VIEW, js=SHOWN)
    edited = {name: view[name] for name in ("overview", "summary")}
    listen(parts.grid.edit, refresh_overview, about, edited, kind=VIEW, js=SHOWN)
    listen(parts.overview.select, find_tag, {}, {"find": tools.find})
    listen(parts.overview.apply, fix, about, parts.result, js=TYPED_AND_SHOWN)


def _connect_changes(parts: Parts, tools: Tools, prefix: gr.Button) -> None:
    about, result = parts.about, parts.result
    listen(prefix.click, add_trigger, about, result, js=TYPED_AND_SHOWN)
    listen(parts.undo.click, undo_captions, {**about, "label": parts.undo}, result, js=TYPED_AND_SHOWN)
    find = {**about, "find": tools.find, "replacement": tools.replacement}
    listen(tools.replace.click, replace_in_all, find, result | {"replacing": tools.replacing}, js=TYPED_AND_SHOWN)
    template = {**about, "template": tools.template, "noun": tools.noun}
    listen(tools.fill.click, fill_in, template, result | {"filling": tools.filling}, js=TYPED_AND_SHOWN)
    writer = tools.writer
    settings = {"project": about["project"], "values": writer.settings}
    listen(writer.write.click, caption_models.write, settings, writer.live, js=TYPED_FIRST)
    listen(writer.timer.tick, caption_models.poll, about, writer.live | parts.view, kind=CHOICE, js=SHOWN)
    listen(parts.grid.apply, decide, about, result, js=TYPED_AND_SHOWN)


def show(project: str) -> dict[str, Any]:
    """Return values of `Tab.outputs` for a project."""
    trigger = page_memory.answer(project, "trigger") if project else ""
    return {
        "trigger": trigger,
        "keep_location": page_memory.keeps_location(),
        "report": "",
        **image_grid.draw(project, trigger),
        **caption_tools.show(project),
    }


# Handlers -------------------------------------------------------------------------------------------------------


def report_change(project: str, trigger: str, selection: Selection, event: gr.EventData) -> dict[str, Any]:
    """Show what became of images that the browser had added or removed, and those that are there now."""
    text = status(str(event.report), bad=bool(event.bad))
    return {"report": text, **image_grid.draw(project, trigger, selection)}


def status(text: str, *, bad: bool = False) -> str:
    """Return the report of a change as HTML."""
    return render("said.html", role="status", look="said bad" if bad else "said", text=text)


@answered
def save_caption(argument: dict[str, Any]) -> dict[str, Any]:
    """Save one caption; the grid calls this as it is typed, and shows both if another page wrote a different one."""
    project, name, text = (str(argument[key]) for key in ("project", "name", "text"))
    try:
        image = projects.find_image(project, name)
    except UserError:  # another page removed it, or the project: sending this again would not help
        lost = _("{name} is no longer in the project. Its caption was not saved: {text}", name=name, text=text)
        return {"gone": lost}
    other = projects.save_caption(image, text, argument.get("base"), Moment.read(argument))
    if other is not None:
        return {"conflict": other}
    written_at = time.monotonic()
    current, caption = image_grid.read(project, page_memory.answer(project, "trigger")), read_text(image)
    usage = image_grid.token_usage(current, caption)
    return {"at": written_at, "caption": caption, "badges": current.badges.get(name, []), **usage}


@answered
def measure(argument: dict[str, str]) -> dict[str, Any]:
    """Measure some of the images that are not measured yet; the grid calls this until none is left."""
    folder = projects.folder(str(argument["project"]))
    image_stats.measure_missing(folder, AT_ONCE)
    return {"left": len(image_stats.look(folder).missing)}


@answered
def remove(argument: dict[str, Any]) -> dict[str, Any]:
    """Move images and their captions to the bin; those that are no longer there are none of its business."""
    project, names = str(argument["project"]), [str(name) for name in argument["names"]]
    text = image_tools.remove(project, names)
    return {"report": text, "at": time.monotonic()}


def refresh_overview(project: str, trigger: str, selection: Selection) -> dict[str, Any]:
    """Return overview and summary after captions were typed; the cards stay as they are."""
    current = image_grid.read(project, trigger)
    return {"overview": image_grid.overview(current), "summary": image_grid.summary(current)}


def find_tag(event: gr.EventData) -> dict[str, Any]:
    """Put a tag that was clicked into the Find box; the images that have it are shown by the grid."""
    return {"find": str(event.tag)}


def _change_all(project: str, sent: Moment, change: caption_edits.Change, description: str) -> str:
    """Change every caption; returns a status that says how many became different."""
    changed = projects.change_captions(project, sent, change, description)
    if not changed:
        return status(_("No caption had to change."))
    return status(ngettext("Changed {n} caption: {what}.", "Changed {n} captions: {what}.", changed, what=description))


def add_trigger(project: str, trigger: str, selection: Selection) -> dict[str, Any]:
    """Add the trigger word to the front of every caption that lacks it."""
    word = one_line(trigger)
    if not word:
        raise UserError("There is no trigger word yet.", "Type one, such as miraxo.")
    page_memory.settle(project, trigger=word)
    change, description = caption_edits.add_trigger(word), _("put {word!r} in front", word=word)
    report = _change_all(project, selection.sent, change, description)
    return {"report": report, **image_grid.draw(project, word, selection)}


def replace_in_all(project: str, trigger: str, selection: Selection, find: str, replacement: str) -> dict[str, Any]:
    """Replace a text in every caption, and clear the preview of the change."""
    change = caption_tools.replaced(find, replacement)
    description = _("replace {old!r} with {new!r}", old=find, new=replacement or "")
    report = _change_all(project, selection.sent, change, description)
    drawn = image_grid.draw(project, trigger, replace(selection, tag=""), asked=selection)
    return {"report": report, "replacing": "", **drawn}


def fill_in(project: str, trigger: str, selection: Selection, template: str, noun: str) -> dict[str, Any]:
    """Fill in a template for every caption, and clear the preview of the change."""
    change = caption_tools.filled(trigger, template, noun)
    report = _change_all(project, selection.sent, change, _("fill in the template"))
    return {"report": report, "filling": "", **image_grid.draw(project, trigger, selection)}


def undo_captions(project: str, trigger: str, selection: Selection, label: str) -> dict[str, Any]:
    """Undo the change that the button named: another page may have made one since, or this is a double click."""
    folder, undone = projects.folder(project), None
    with projects.changing_captions(project, selection.sent):
        if label == image_grid.undo_label(folder):
            undone = undo.undo(folder)
    text = _("This was undone already, or something was changed since.")
    if undone and (undone.captions or undone.images):
        text = _("Undone: {what}.", what=undone.title)
        if undone.newer:
            text += " " + _("Captions that were edited since then were left alone: {number}.", number=undone.newer)
    return {"report": status(text), **image_grid.draw(project, trigger, selection)}


def fix(project: str, trigger: str, selection: Selection, event: gr.EventData) -> dict[str, Any]:
    """Apply the fix for a kind of problem; it removes only images that the finding named."""
    word = one_line(trigger or "")
    with projects.changing_captions(project, selection.sent) as typed:
        problems = [
            problem
            for problem in image_grid.read(project, word).problems
            if KINDS[problem.kind].action != "remove" or problem.name in event.names
        ]
        report = fixes.apply_fix(projects.folder(project), problems, str(event.kind), word, without=typed)
    drawn = image_grid.draw(project, trigger, replace(selection, kind=""), asked=selection)
    return {"report": status(report), **drawn}


def decide(project: str, trigger: str, selection: Selection, event: gr.EventData) -> dict[str, Any]:
    """Keep or discard the captions that a model proposes, of one image or of all."""
    text = image_tools.decide(project, str(event.action), str(event.name), selection.sent)
    return {"report": status(text), **image_grid.draw(project, trigger, selection)}


def change_selected(project: str, trigger: str, selection: Selection, event: gr.EventData) -> dict[str, Any]:
    """Rotate or remove the selected images, or change a tag in their captions."""
    names = [str(name) for name in event.names]
    action, tags = str(event.action), (str(event.tag), str(event.other))
    text = image_tools.change_selected(project, names, action, *tags, selection.sent)
    return {"report": status(text), **image_grid.draw(project, trigger, selection)}


def restore_removed(project: str, trigger: str, selection: Selection) -> dict[str, Any]:
    """Restore what was removed last."""
    text = _("There is nothing to restore.")
    if dataset.restore_last(projects.folder(project)):
        text = _("Restored.")
    return {"report": status(text), **image_grid.draw(project, trigger, selection)}
