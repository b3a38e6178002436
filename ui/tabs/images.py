"""Images tab: add images, edit their captions, find and fix problems. All state is in the folder of the dataset."""

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from trainer import foreign_text
from trainer.data import caption_edits, dataset, fixes, image_stats, sandbox, undo
from trainer.data.captions import one_line, read_caption
from trainer.errors import UserError
from trainer.i18n import _, ngettext
from ui.state import gauging, page_memory, pending_uploads, projects
from ui.tabs import caption_models, caption_tools, image_grid, image_tools
from ui.tabs.caption_tools import Tools
from ui.tabs.image_grid import Selection
from ui.widgets.handlers import EACH, QUIET, TOGETHER, answered, handled
from ui.widgets.templates import read

AT_ONCE = 24  # images that are measured in one request
# Waits until the captions that were typed last are on disk; see captions.js.
TYPED_FIRST = "async (...values) => { await window.limnerSaved?.(); return values; }"
# Gradio passes only the names of files in an added folder; captions.js notes their paths inside it.
WITH_PATHS = "(...values) => [...values.slice(0, -1), JSON.stringify(window.limnerFolder ?? [])]"


@dataclass(frozen=True)
class Tab:
    """The components that other parts of the page read or fill; `show` returns values for `outputs`."""

    trigger: gr.Textbox
    forward: gr.Button
    parts: "Parts"
    outputs: list[Any]


@dataclass(frozen=True)
class Parts:
    """Inputs and outputs of the handlers. Each handler takes the values of `inputs` first."""

    inputs: list[Any]
    upload: gr.File
    folder: gr.File
    paths: gr.Textbox
    report: gr.HTML
    selection: gr.State
    grid: gr.HTML
    overview: gr.HTML
    summary: gr.HTML
    restore: gr.Button
    undo: gr.Button

    @property
    def view(self) -> list[Any]:
        """Components that `image_grid.draw` returns values for."""
        return [self.selection, self.grid, self.overview, self.summary, self.restore, self.undo]

    @property
    def result(self) -> list[Any]:
        """The report of a change, and the view."""
        return [self.report, *self.view]


def build(project: gr.Dropdown) -> Tab:
    """Draw the tab and connect it."""
    paths = gr.Textbox(visible=False)
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=1, min_width=300, elem_classes="side"):
            upload, folder = _upload()
            gr.HTML({}, html_template=read("uploads.html"), js_on_load=read("uploads.js"), elem_id="running-upload")
            trigger = gr.Textbox(
                label=_("Trigger word"),
                info=_("A made-up word that calls up your character or style, such as miraxo."),
                max_lines=1,
                elem_id="trigger",
                interactive=True,
            )
            prefix = gr.Button(_("Add to the front of every caption"), elem_id="prefix", size="sm")
            overview = gr.HTML(
                {}, html_template=read("overview.html"), js_on_load=read("overview.js"), elem_id="overview"
            )
            tools = caption_tools.build()
            keep_location = _location()
            forward = gr.Button(_("Next: train"), variant="primary", elem_id="to-train")
        with gr.Column(scale=4, min_width=320, elem_classes="canvas"):
            report = gr.HTML(elem_id="report", elem_classes="report")
            with gr.Row(elem_classes="tools"):
                summary = gr.HTML(elem_id="dataset-summary")
                restore = gr.Button(_("Restore what was removed"), elem_id="restore", size="sm", visible=False)
                undo = gr.Button(_("Undo"), elem_id="undo", size="sm", visible=False)
            selected = gr.HTML(
                {}, html_template=read("selection.html"), js_on_load=read("selection.js"), elem_id="selection"
            )
            grid = gr.HTML(
                {},
                html_template=read("captions.html"),
                js_on_load=read("captions.js"),
                server_functions=[save_caption, measure],
                elem_id="captions",
            )
            tools_of_viewer = gr.HTML(
                js_on_load=read("image_tools.js"),
                server_functions=[image_tools.edit_image, image_tools.describe_crop],
            )
            tools_of_masks = gr.HTML(js_on_load=read("masks.js"), server_functions=[image_tools.save_mask])
    selection = gr.State(Selection())
    inputs = [project, trigger, selection]
    parts = Parts(inputs, upload, folder, paths, report, selection, grid, overview, summary, restore, undo)
    _connect_view(parts, tools)
    _connect_changes(parts, tools, prefix)
    selected.apply(handled(change_selected), inputs, parts.result, js=TYPED_FIRST, **EACH)
    for edited in (tools_of_viewer, tools_of_masks):
        edited.end(handled(image_grid.draw), inputs, parts.view, **QUIET)
    caption_tools.connect(tools, project, trigger)
    return Tab(trigger, forward, parts, [trigger, keep_location, *parts.result, *tools.outputs])


def _upload() -> tuple[gr.File, gr.File]:
    upload = gr.File(
        label=_("Drop images or a .zip here, or click to choose"),
        file_count="multiple",
        height=96,
        elem_id="upload",
        elem_classes="drop",
        interactive=True,
    )
    folder = gr.File(
        label=_("Add a folder"),
        file_count="directory",
        height=40,
        elem_id="folder",
        elem_classes="drop",
        interactive=True,
    )
    return upload, folder


def _location() -> gr.Checkbox:
    words = _("Otherwise it is removed from photos as they are added. No adapter contains it, but backups would.")
    box = gr.Checkbox(
        label=_("Keep the place where photos were taken"), info=words, elem_id="keep-location", interactive=True
    )
    box.input(handled(page_memory.remember_location), box, None, **QUIET)
    return box


def connect_files(
    parts: Parts, show_project: Callable[[str | None, list[str] | None], Any], outputs: Sequence[Any]
) -> None:
    """Connect dropped files: `show_project` finds or creates their project and returns values for `outputs`."""
    busy = {"api_visibility": "private", "show_progress": "full", "show_progress_on": parts.report}
    project = parts.inputs[0]
    parts.upload.upload(handled(show_project), [project, parts.upload], outputs, **QUIET).then(
        handled(add),
        [*parts.inputs, parts.upload],
        [parts.upload, *parts.result],
        **busy,
    )
    parts.folder.upload(handled(show_project), [project, parts.folder], outputs, **QUIET).then(
        handled(add),
        [*parts.inputs, parts.folder, parts.paths],
        [parts.folder, *parts.result],
        js=WITH_PATHS,
        **busy,
    )


def _connect_view(parts: Parts, tools: Tools) -> None:
    parts.grid.delete(handled(remove), parts.inputs, parts.result, **EACH)
    parts.restore.click(handled(restore_removed), parts.inputs, parts.result, **QUIET)
    parts.grid.select(handled(change_selection), parts.inputs, parts.view, **TOGETHER)
    parts.grid.end(handled(image_grid.draw), parts.inputs, parts.view, **QUIET)
    parts.grid.edit(handled(refresh_overview), parts.inputs, [parts.overview, parts.summary], **QUIET)
    after_typing = {"js": TYPED_FIRST, **QUIET}
    filtered = [tools.find, *parts.view]
    parts.overview.select(handled(filter_images), parts.inputs, filtered, **after_typing)
    parts.overview.apply(handled(fix), parts.inputs, parts.result, js=TYPED_FIRST, **EACH)


def _connect_changes(parts: Parts, tools: Tools, prefix: gr.Button) -> None:
    after_typing = {"js": TYPED_FIRST, **QUIET}
    prefix.click(handled(add_trigger), parts.inputs, parts.result, **after_typing)
    parts.undo.click(handled(undo_captions), parts.inputs, parts.result, **after_typing)
    find_and_replace = [*parts.inputs, tools.find, tools.replacement]
    tools.replace.click(handled(replace_in_all), find_and_replace, [*parts.result, tools.replacing], **after_typing)
    template = [*parts.inputs, tools.template, tools.noun]
    tools.fill.click(handled(fill_in), template, [*parts.result, tools.filling], **after_typing)
    writer = tools.writer
    settings = [parts.inputs[0], *writer.settings]
    writer.write.click(handled(caption_models.write), settings, writer.live, **after_typing)
    writer.timer.tick(handled(caption_models.poll), parts.inputs, [*writer.live, *parts.view], **QUIET)
    parts.grid.apply(handled(decide), parts.inputs, parts.result, js=TYPED_FIRST, **EACH)


def show(project: str) -> list[Any]:
    """Return values of `Tab.outputs` for a project."""
    trigger = page_memory.answer(project, "trigger") if project else ""
    keep_location = page_memory.keeps_location()
    return [trigger, keep_location, "", *image_grid.draw(project, trigger), *caption_tools.show(project)]


# Handlers -------------------------------------------------------------------------------------------------------


def add(
    project: str,
    trigger: str,
    selection: Selection,
    uploads: Sequence[str] | None,
    paths: str = "",
    progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio looks for this default
) -> list[Any]:
    """Import uploaded files into the project; each file that is refused is named with its reason.

    `paths` are those of the files inside an added folder, as JSON, so that equal names in two folders stay apart.
    """
    files = [Path(upload) for upload in uploads or ()]
    folder = projects.folder(project)
    is_new = project.startswith(projects.FIRST) and not dataset.image_files(folder)  # see `projects.for_upload`
    try:
        sources = list(zip(_names(paths, files), files, strict=True))
        number, unit = itertools.count(1), _("images")

        def look(name: str) -> None:
            progress((next(number), None), desc=name, unit=unit)

        report = sandbox.add(folder, sources, look, keep_location=page_memory.keeps_location())
    finally:
        pending_uploads.discard(files)
    text = report.sentence()
    if is_new and report.added:
        text += " " + _("They are in the project {project}.", project=project)
    status = _status(text, bad=bool(report.refused))
    return [None, status, *image_grid.draw(project, trigger, Selection(order=selection.order))]


def _names(paths: str, files: Sequence[Path]) -> list[str]:
    """Return the names of files by which the user knows them: their paths in a folder, or else those of the uploads."""
    with suppress(foreign_text.ForeignTextError):
        names = foreign_text.parse_json(paths or "[]")
        if isinstance(names, list) and len(names) == len(files):
            return [str(name) for name in names]
    return [file.name for file in files]


def _status(text: str, *, bad: bool = False) -> str:
    return f"<p role='status' class='{'said bad' if bad else 'said'}'>{escape(text)}</p>"


@answered
def save_caption(argument: dict[str, str]) -> dict[str, Any]:
    """Save one caption; the grid calls this as it is typed.

    `base` is the caption that was changed. If another page has written a different one since, nothing is saved, and the
    grid shows both.
    """
    project, name = str(argument["project"]), str(argument["name"])
    image, text, base = projects.find_image(project, name), str(argument["text"])[:10_000], argument.get("base")
    with dataset.captions_lock(image.parent):
        present = read_caption(image)
        if base is not None and present not in (one_line(str(base)), one_line(text)):
            return {"conflict": present}
        dataset.write_caption(image, text)
    written_at = time.monotonic()
    current, caption = image_grid.read(project, page_memory.answer(project, "trigger")), read_caption(image)
    usage = image_grid.token_usage(current, caption)
    return {"at": written_at, "caption": caption, "badges": current.badges(name), **usage}


@answered
def measure(argument: dict[str, str]) -> dict[str, Any]:
    """Measure some of the images that are not measured yet; the grid calls this until none is left."""
    folder = projects.folder(str(argument["project"]))
    image_stats.measure_missing(folder, AT_ONCE)
    left = len(image_stats.missing(folder))
    return {"left": left, "looking": not left and gauging.look(folder)}


def refresh_overview(project: str, trigger: str, selection: Selection) -> list[Any]:
    """Return overview and summary after captions were typed; the cards stay as they are."""
    current = image_grid.read(project, trigger)
    return [image_grid.overview(current), image_grid.summary(current)]


def change_selection(project: str, trigger: str, selection: Selection, event: gr.EventData) -> list[Any]:
    """Show another page, another order, or all images again."""
    page, order = getattr(event, "page", None), getattr(event, "order", None)
    if page is not None:
        selection = replace(selection, page=int(page))
    elif order in image_grid.ORDERS:
        selection = replace(selection, order=str(order), page=1)
    else:
        selection = Selection(order=selection.order)
    return image_grid.draw(project, trigger, selection)


def filter_images(project: str, trigger: str, selection: Selection, event: gr.EventData) -> list[Any]:
    """Show only the images with a kind of problem, or with a tag; the tag also goes into the Find box.

    Otherwise the box stays as it is, since the user may have typed into it while this was under way.
    """
    kind, tag = str(getattr(event, "kind", "")), str(getattr(event, "tag", ""))
    filtered = Selection(order=selection.order, kind=kind, tag=tag)
    return [tag or gr.skip(), *image_grid.draw(project, trigger, filtered)]


def _change_all(folder: Path, change: caption_edits.Change, description: str) -> str:
    """Change every caption; returns a status that says how many became different."""
    with dataset.captions_lock(folder):
        changes = caption_edits.preview(folder, change)
        caption_edits.apply(folder, changes, description)
    if not changes:
        return _status(_("No caption had to change."))
    text = ngettext("Changed {n} caption: {what}.", "Changed {n} captions: {what}.", len(changes), what=description)
    return _status(text)


def add_trigger(project: str, trigger: str, selection: Selection) -> list[Any]:
    """Add the trigger word to the front of every caption that lacks it."""
    folder, word = projects.folder(project), one_line(trigger)
    if not word:
        raise UserError("There is no trigger word yet.", "Type one, such as miraxo.")
    page_memory.remember(project, "trigger", word)
    status = _change_all(folder, caption_edits.add_trigger(word), _("put {word!r} in front", word=word))
    return [status, *image_grid.draw(project, word, selection)]


def replace_in_all(project: str, trigger: str, selection: Selection, find: str, replacement: str) -> list[Any]:
    """Replace a text in every caption, and clear the preview of the change."""
    change = caption_tools.replaced(find, replacement)
    description = _("replace {old!r} with {new!r}", old=find, new=replacement or "")
    status = _change_all(projects.folder(project), change, description)
    return [status, *image_grid.draw(project, trigger, replace(selection, tag="")), ""]


def fill_in(project: str, trigger: str, selection: Selection, template: str, noun: str) -> list[Any]:
    """Fill in a template for every caption, and clear the preview of the change."""
    change = caption_tools.filled(trigger, template, noun)
    status = _change_all(projects.folder(project), change, _("fill in the template"))
    page_memory.remember(project, "class", one_line(noun or ""))
    return [status, *image_grid.draw(project, trigger, selection), ""]


def undo_captions(project: str, trigger: str, selection: Selection) -> list[Any]:
    """Undo the last change of many captions."""
    undone = undo.undo(projects.folder(project))
    text = _("There is nothing to undo.")
    if undone:
        text = _("Undone: {what}.", what=undone.title)
        if undone.newer:
            text += " " + _("Captions that were edited since then were left alone: {number}.", number=undone.newer)
    return [_status(text), *image_grid.draw(project, trigger, selection)]


def fix(project: str, trigger: str, selection: Selection, event: gr.EventData) -> list[Any]:
    """Apply the fix for a kind of problem."""
    folder, word = projects.folder(project), one_line(trigger or "")
    with dataset.captions_lock(folder):
        report = fixes.apply(folder, image_grid.read(project, word).problems, str(event.kind), word)
    return [_status(report), *image_grid.draw(project, trigger, replace(selection, kind=""))]


def remove(project: str, trigger: str, selection: Selection, event: gr.EventData) -> list[Any]:
    """Move an image and its caption to the bin."""
    image = projects.find_image(project, str(event.name))
    dataset.remove(image)
    status = _status(_("Removed {name}.", name=image.name))
    return [status, *image_grid.draw(project, trigger, selection)]


def decide(project: str, trigger: str, selection: Selection, event: gr.EventData) -> list[Any]:
    """Keep or discard the captions that a model proposes, of one image or of all."""
    text = image_tools.decide(project, str(event.action), str(event.name))
    return [_status(text), *image_grid.draw(project, trigger, selection)]


def change_selected(project: str, trigger: str, selection: Selection, event: gr.EventData) -> list[Any]:
    """Rotate or remove the selected images, or change a tag in their captions."""
    names = [str(name) for name in event.names]
    text = image_tools.change_selected(project, names, str(event.action), str(event.tag), str(event.other))
    return [_status(text), *image_grid.draw(project, trigger, selection)]


def restore_removed(project: str, trigger: str, selection: Selection) -> list[Any]:
    """Restore what was removed last."""
    text = _("There is nothing to restore.")
    if dataset.restore_last(projects.folder(project)):
        text = _("Restored.")
    return [_status(text), *image_grid.draw(project, trigger, selection)]
