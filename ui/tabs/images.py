"""Tab 1: pictures in, their captions, what is wrong with them. The folder of the data set is the only state."""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from trainer.data import caption_edits, dataset, fixes, image_stats, sandbox
from trainer.data.captions import one_line, read_caption
from trainer.errors import UserError
from trainer.i18n import count, say
from ui.server import media
from ui.state import gauging, page_memory
from ui.tabs import caption_tools, image_grid
from ui.tabs.caption_tools import Tools
from ui.tabs.image_grid import Look
from ui.widgets.handlers import QUIET, answered, handled
from ui.widgets.templates import read

FIRST = "my-pictures"  # the project of who has none
SHIPPED = "example-"  # how the names of the data sets that come along begin
AT_ONCE = 24  # pictures that are measured in one go
# Waits until the captions that were typed last are on disk; see captions.js.
TYPED_FIRST = "async (...values) => { await window.limnerSaved?.(); return values; }"
# Gradio hands on the bare names of the files in a folder; captions.js noted where each lies.
WITH_PLACES = "(...values) => [...values.slice(0, -1), JSON.stringify(window.limnerFolder ?? [])]"


@dataclass(frozen=True)
class Tab:
    """The components that others read or fill; `shown` are those that `show` gives values for."""

    trigger: gr.Textbox
    forward: gr.Button
    parts: "Parts"
    shown: list[Any]


@dataclass(frozen=True)
class Parts:
    """Inputs and outputs of the handlers."""

    given: list[Any]
    upload: gr.File
    folder: gr.File
    places: gr.Textbox
    report: gr.HTML
    look: gr.State
    grid: gr.HTML
    overview: gr.HTML
    summary: gr.HTML
    restore: gr.Button
    undo: gr.Button

    @property
    def view(self) -> list[Any]:
        """Components that `image_grid.draw` gives values for."""
        return [self.look, self.grid, self.overview, self.summary, self.restore, self.undo]


def build(project: gr.Dropdown) -> Tab:
    """Draw the tab and connect it."""
    with gr.Row(equal_height=True, elem_id="adding"):
        upload = gr.File(
            label=say("Drop pictures or a .zip here, or click to choose"), file_count="multiple", height=130,
            file_types=["image", ".zip", ".txt"], elem_id="upload", interactive=True, scale=4, min_width=220,
        )  # fmt: skip
        folder = gr.File(
            label=say("Add a folder"), file_count="directory", height=130, elem_id="folder", interactive=True, scale=1,
            min_width=160,
        )  # fmt: skip
    places = gr.Textbox(visible=False)
    report = gr.HTML(elem_id="report", elem_classes="report")
    with gr.Row(equal_height=False, elem_classes="bottom"):
        trigger = gr.Textbox(
            label=say("Trigger word"), max_lines=1, elem_id="trigger", interactive=True, scale=3,
            info=say("A made-up word that will call your character or style, such as miraxo."),
        )  # fmt: skip
        prefix = gr.Button(say("Put in front of every caption"), elem_id="prefix", scale=1, min_width=220)
    with gr.Row(elem_classes="tools"):
        summary = gr.HTML(elem_id="dataset-summary")
        restore = gr.Button(say("Bring back what was removed"), elem_id="restore", size="sm", visible=False)
        undo = gr.Button(say("Undo"), elem_id="undo", size="sm", visible=False)
    overview = gr.HTML(
        {}, html_template=read("overview.html"), js_on_load=read("overview.js"), elem_id="overview"
    )  # fmt: skip
    tools = caption_tools.build()
    cards = gr.HTML(
        {}, html_template=read("captions.html"), js_on_load=read("captions.js"),
        server_functions=[save_caption, measure], elem_id="captions",
    )  # fmt: skip
    with gr.Row(elem_classes="next"):
        forward = gr.Button(say("Next: train"), variant="primary", elem_id="to-train")
    look = gr.State(Look())
    parts = Parts(
        [project, trigger, look], upload, folder, places, report, look, cards, overview, summary, restore, undo
    )
    _connect_view(parts, tools)
    _connect_changes(parts, tools, prefix)
    caption_tools.connect(tools, project, trigger)
    return Tab(trigger, forward, parts, [trigger, report, *parts.view, *tools.shown])


def connect_files(parts: Parts, begin: Callable[[str | None, list[str] | None], Any], shown: Sequence[Any]) -> None:
    """Connect dropped files: `begin` finds the project for them and gives values for `shown`."""
    busy = {"api_visibility": "private", "show_progress": "full", "show_progress_on": parts.report}
    project, added = parts.given[0], [parts.report, *parts.view]
    parts.upload.upload(handled(begin), [project, parts.upload], shown, **QUIET).then(
        handled(add), [*parts.given, parts.upload], [parts.upload, *added], **busy
    )
    parts.folder.upload(handled(begin), [project, parts.folder], shown, **QUIET).then(
        handled(add), [*parts.given, parts.folder, parts.places], [parts.folder, *added], js=WITH_PLACES, **busy
    )


def _connect_view(parts: Parts, tools: Tools) -> None:
    removed = [parts.report, *parts.view]
    parts.grid.delete(handled(remove), parts.given, removed, **QUIET)
    parts.restore.click(handled(bring_back), parts.given, removed, **QUIET)
    parts.grid.select(handled(turn), parts.given, parts.view, **QUIET)
    parts.grid.end(handled(image_grid.draw), parts.given, parts.view, **QUIET)
    parts.grid.edit(handled(restate), parts.given, [parts.overview, parts.summary], **QUIET)
    parts.overview.select(
        handled(narrow), [*parts.given, tools.find], [tools.find, *parts.view], js=TYPED_FIRST, **QUIET
    )
    parts.overview.apply(handled(mend), parts.given, [parts.report, *parts.view], js=TYPED_FIRST, **QUIET)


def _connect_changes(parts: Parts, tools: Tools, prefix: gr.Button) -> None:
    shown = [parts.report, *parts.view]
    first = {"js": TYPED_FIRST, **QUIET}
    prefix.click(handled(put_in_front), parts.given, shown, **first)
    parts.undo.click(handled(undo_captions), parts.given, shown, **first)
    tools.replace.click(
        handled(replace_in_all), [*parts.given, tools.find, tools.replacement], [*shown, tools.replacing], **first
    )
    tools.fill.click(
        handled(fill_in), [*parts.given, tools.template, tools.noun], [*shown, tools.filling], **first
    )  # fmt: skip
    project = parts.given[0]
    tools.write.click(handled(caption_tools.start), [project, tools.model, tools.existing], tools.live, **first)
    tools.timer.tick(handled(follow), parts.given, [*tools.live, *parts.view], **QUIET)


def show(project: str) -> list[Any]:
    """Values of `Tab.shown` for a project."""
    trigger = page_memory.answer(project, "trigger") if project else ""
    return [trigger, "", *image_grid.draw(project, trigger), *caption_tools.show(project)]


# Handlers -------------------------------------------------------------------------------------------------------


def place(project: str | None) -> str:
    """The project for pictures that are dropped: a new one if none is open, or one that came with the program."""
    if project and not project.startswith(SHIPPED):
        return project
    names, number = dataset.names(), 1
    name = FIRST
    while name in names:
        number += 1
        name = f"{FIRST}-{number}"
    dataset.create(name)
    return name


def add(
    project: str, trigger: str, look: Look, uploads: Sequence[str] | None, places: str = "",
    progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio is asked for one
) -> list[Any]:  # fmt: skip
    """Take uploaded files into the project; each that is refused is named with its reason.

    `places` is where each lies in an added folder, so that equal names in two folders are not mixed up.
    """
    paths = [Path(upload) for upload in uploads or ()]
    folder = image_grid.folder_of(project)
    begun = project.startswith(FIRST) and not dataset.image_files(folder)  # by these pictures: see `place`
    try:
        names = json.loads(places or "[]")
        names = names if len(names) == len(paths) else [path.name for path in paths]
        sources = list(zip(map(str, names), paths, strict=True))
        number, unit = itertools.count(1), say("pictures")
        report = sandbox.add(folder, sources, lambda name: progress((next(number), None), desc=name, unit=unit))
    finally:
        for path in paths:  # Gradio's own copies, each in a folder of its own
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()
    said = report.sentence()
    if begun and report.added:
        said += " " + say("They are in the project {project}.", project=project)
    return [None, _said(said, bad=bool(report.refused)), *image_grid.draw(project, trigger, Look(order=look.order))]


def _said(text: str, *, bad: bool = False) -> str:
    return f"<p role='status' class='{'said bad' if bad else 'said'}'>{escape(text)}</p>"


@answered
def save_caption(argument: dict[str, str]) -> dict[str, Any]:
    """Save one caption; called by the grid as it is typed."""
    project, name = str(argument["project"]), str(argument["name"])
    picture = media.find_picture(project, name)
    dataset.write_caption(picture, str(argument["text"])[:10_000])
    written_at = time.monotonic()
    found = image_grid.read(project, page_memory.answer(project, "trigger"))
    return {"at": written_at, "badges": found.badges(name), **image_grid.length(found, read_caption(picture))}


@answered
def measure(argument: dict[str, str]) -> dict[str, Any]:
    """Look at some of the pictures that were not looked at yet; called by the grid until none is left."""
    folder = image_grid.folder_of(str(argument["project"]))
    image_stats.measure_missing(folder, AT_ONCE)
    left = len(image_stats.missing(folder))
    return {"left": left, "looking": not left and gauging.look(folder)}


def restate(project: str, trigger: str, look: Look) -> list[Any]:
    """The list of what to look at and the summary, after captions were typed; the cards stay where they are."""
    found = image_grid.read(project, trigger)
    return [image_grid.overview(found), image_grid.summary(found)]


def turn(project: str, trigger: str, look: Look, event: gr.EventData) -> list[Any]:
    """Show another page, or all in another order, or all pictures again."""
    page, order = getattr(event, "page", None), getattr(event, "order", None)
    if page is not None:
        look = replace(look, page=int(page))
    elif order in image_grid.ORDERS:
        look = replace(look, order=str(order), page=1)
    else:
        look = Look(order=look.order)
    return image_grid.draw(project, trigger, look)


def narrow(project: str, trigger: str, look: Look, find: str, event: gr.EventData) -> list[Any]:
    """Show only the pictures with a kind of problem, or with a tag, which also becomes what to find."""
    kind, tag = str(getattr(event, "kind", "")), str(getattr(event, "tag", ""))
    return [tag or find, *image_grid.draw(project, trigger, Look(order=look.order, kind=kind, tag=tag))]


def _change_all(folder: Path, change: caption_edits.Change, what: str) -> str:
    """Change every caption; returns in words how many became different."""
    with dataset.captions_lock(folder):
        changes = caption_edits.preview(folder, change)
        caption_edits.apply(folder, changes, what)
    if not changes:
        return say("No caption had to change.")
    return count("Changed {n} caption: {what}.", "Changed {n} captions: {what}.", len(changes), what=what)


def put_in_front(project: str, trigger: str, look: Look) -> list[Any]:
    """Put the trigger word in front of every caption that lacks it."""
    folder, word = image_grid.folder_of(project), one_line(trigger)
    if not word:
        raise UserError("There is no trigger word yet.", "Type one, such as miraxo.")
    page_memory.remember(project, "trigger", word)
    said = _change_all(folder, caption_edits.add_trigger(word), say("put {word!r} in front", word=word))
    return [_said(said), *image_grid.draw(project, word, look)]


def replace_in_all(project: str, trigger: str, look: Look, find: str, replacement: str) -> list[Any]:
    """Replace a text in every caption; what it would have done need not be shown any longer."""
    change = caption_tools.replaced(find, replacement)
    what = say("replace {old!r} with {new!r}", old=find, new=replacement or "")
    said = _change_all(image_grid.folder_of(project), change, what)
    return [_said(said), *image_grid.draw(project, trigger, replace(look, tag="")), ""]


def fill_in(project: str, trigger: str, look: Look, template: str, noun: str) -> list[Any]:
    """Make every caption by a template."""
    change = caption_tools.filled(trigger, template, noun)
    said = _change_all(image_grid.folder_of(project), change, say("fill in the template"))
    page_memory.remember(project, "class", one_line(noun or ""))
    return [_said(said), *image_grid.draw(project, trigger, look), ""]


def undo_captions(project: str, trigger: str, look: Look) -> list[Any]:
    """Take back the last change of many captions."""
    undone = caption_edits.undo(image_grid.folder_of(project))
    said = say("There is nothing to take back.")
    if undone:
        said = say("Took back: {what}.", what=undone.title)
        if undone.newer:
            said += " " + say("Captions that were changed since stay as they are: {number}.", number=undone.newer)
    return [_said(said), *image_grid.draw(project, trigger, look)]


def mend(project: str, trigger: str, look: Look, event: gr.EventData) -> list[Any]:
    """Apply the remedy for a kind of problem."""
    folder, word = image_grid.folder_of(project), one_line(trigger or "")
    with dataset.captions_lock(folder):
        said = fixes.apply(folder, image_grid.read(project, word).problems, str(event.kind), word)
    return [_said(said), *image_grid.draw(project, trigger, replace(look, kind=""))]


def remove(project: str, trigger: str, look: Look, event: gr.EventData) -> list[Any]:
    """Move a picture and its caption to the bin."""
    image_grid.folder_of(project)
    picture = media.find_picture(project, str(event.name))
    dataset.remove(picture)
    return [_said(say("Removed {name}.", name=picture.name)), *image_grid.draw(project, trigger, look)]


def bring_back(project: str, trigger: str, look: Look) -> list[Any]:
    """Bring back what was removed last."""
    found = dataset.restore_last(image_grid.folder_of(project))
    said = say("Brought it back.") if found else say("There is nothing to bring back.")
    return [_said(said), *image_grid.draw(project, trigger, look)]


def follow(project: str, trigger: str, look: Look) -> list[Any]:
    """Show the progress of the model that writes captions; at its end the grid is drawn with its captions."""
    told = caption_tools.draw(project)
    if caption_tools.is_writing(project):
        return [*told, *(gr.skip() for _ in range(6))]
    return [*told, *image_grid.draw(project, trigger, look)]
