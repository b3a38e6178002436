"""Tab 1: pictures in, their captions, what is wrong with them. The folder of the data set is the only state."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import dataset, files, intake
from trainer.errors import UserError
from ui import media, memory
from ui.handling import QUIET, answered, handled

PAGE = 100
SMALL = 200  # pixels; pictures with a smaller side are enlarged without blurring them
# Waits until the captions that were typed last are on disk; see captions.js.
TYPED_FIRST = "async (...values) => { await window.limnerSaved?.(); return values; }"
_CHANGING = threading.Lock()  # one change of captions at a time


@dataclass(frozen=True)
class Tab:
    """The components that others read or fill; `shown` are those that `show` gives values for."""

    trigger: gr.Textbox
    report: gr.HTML
    forward: gr.Button
    shown: list[Any]


def build(project: gr.Dropdown) -> Tab:
    """Draw the tab and connect it."""
    here = Path(__file__).parent
    upload = gr.File(
        label="Drop pictures or a .zip here, or click to choose", file_count="multiple", height=130,
        file_types=["image", ".zip", ".txt"], elem_id="upload", interactive=True,
    )  # fmt: skip
    report = gr.HTML(elem_id="report", elem_classes="report")
    with gr.Row(equal_height=False, elem_classes="bottom"):
        trigger = gr.Textbox(
            label="Trigger word", info="A made-up word that will call your character or style, such as miraxo.",
            max_lines=1, elem_id="trigger", interactive=True, scale=3,
        )  # fmt: skip
        prefix = gr.Button("Put in front of every caption", elem_id="prefix", scale=1, min_width=220)
    with gr.Accordion("Change many captions", open=False, elem_id="bulk"), gr.Row(elem_classes="bottom"):
        find = gr.Textbox(label="Find", max_lines=1, elem_id="find", interactive=True)
        replacement = gr.Textbox(label="Replace with", max_lines=1, elem_id="replacement", interactive=True)
        replace = gr.Button("Replace in all", elem_id="replace")
    with gr.Row(elem_classes="tools"):
        summary = gr.HTML(elem_id="dataset-summary")
        restore = gr.Button("Bring back the removed picture", elem_id="restore", size="sm", visible=False)
        undo = gr.Button("Undo the last change of all captions", elem_id="undo", size="sm", visible=False)
    grid = gr.HTML(
        grid_value("", "", 1), html_template=(here / "captions.html").read_text(encoding="utf-8"),
        js_on_load=(here / "captions.js").read_text(encoding="utf-8"), server_functions=[save_caption],
        elem_id="captions",
    )  # fmt: skip
    with gr.Row(elem_classes="next"):
        forward = gr.Button("Next: train", variant="primary", elem_id="to-train")
    view = [grid, summary, restore, undo]
    both = [project, trigger]
    upload.upload(
        handled(add), [*both, upload], [report, upload, *view], api_visibility="private", show_progress="minimal"
    )
    prefix.click(handled(put_in_front), both, [report, *view], js=TYPED_FIRST, **QUIET)
    replace.click(handled(replace_in_all), [*both, find, replacement], [report, *view], js=TYPED_FIRST, **QUIET)
    undo.click(handled(undo_captions), both, [report, *view], js=TYPED_FIRST, **QUIET)
    restore.click(handled(bring_back), both, [report, *view], **QUIET)
    grid.delete(handled(remove), both, [report, *view], **QUIET)
    grid.select(handled(turn_page), both, view, **QUIET)
    return Tab(trigger, report, forward, [trigger, report, *view])


def show(project: str) -> list[Any]:
    """Values of `Tab.shown` for a project."""
    trigger = memory.answer(project, "trigger") if project else ""
    return [trigger, "", *look(project, trigger)]


def look(project: str, trigger: str, page: int = 1) -> list[Any]:
    """The grid, the summary and the two undo buttons as the folder is now."""
    value = grid_value(project, trigger, page)
    folder = files.datasets() / project if project else None
    removed = folder is not None and any((folder / dataset.BIN).glob("*"))
    changed = folder is not None and any((folder / dataset.CACHE / "undo").glob("*.json"))
    return [value, summary_of(project, trigger), gr.Button(visible=removed), gr.Button(visible=changed)]


def grid_value(project: str, trigger: str, page: int) -> dict[str, Any]:
    """What the grid's template draws."""
    folder = files.datasets() / project if project else None
    examples = dataset.read(folder) if folder and folder.is_dir() else ()
    badges = problems_of(folder, trigger) if folder and folder.is_dir() else {}
    pages = max(1, -(-len(examples) // PAGE))
    page = min(max(1, page), pages)
    return {
        "project": project,
        "page": page,
        "items": [
            {
                "name": example.name,
                "url": f"/media/dataset/{quote(project)}/{quote(example.name)}?t={example.path.stat().st_mtime_ns}",
                "caption": example.caption,
                "look": "small" if min(example.width, example.height) < SMALL else "",
                "badges": badges.get(example.name, []),
            }
            for example in examples[(page - 1) * PAGE : page * PAGE]
        ],
        "paged": pages > 1,
        "pages": [
            {
                "number": number,
                "current": " current" if number == page else "",
                "label": f"{(number - 1) * PAGE + 1} to {min(number * PAGE, len(examples))}",
            }
            for number in range(1, pages + 1)
        ],
    }


def problems_of(folder: Path, trigger: str) -> dict[str, list[str]]:
    """What is wrong, by the name of the file; "" for the whole set."""
    found: dict[str, list[str]] = {}
    for problem in dataset.problems(folder, trigger):
        found.setdefault(problem.name, []).append(problem.message)
    return found


def summary_of(project: str, trigger: str) -> str:
    """One line: how many pictures and captions, and what stands in the way of training."""
    if not project:
        return "Make a project first: choose <b>New project</b> above."
    folder = files.datasets() / project
    examples = dataset.read(folder) if folder.is_dir() else ()
    captions = sum(1 for example in examples if example.caption)
    problems = [one for one in dataset.problems(folder, trigger) if not one.name] if folder.is_dir() else []
    parts = [f"<b>{len(examples)} pictures</b>", f"{captions} captions"]
    parts += [escape(f"{one.message} {one.remedy}") for one in problems] or ["ready to train"]
    return " &middot; ".join(parts)


# Handlers -------------------------------------------------------------------------------------------------------


def folder_of(project: str | None) -> Path:
    """The folder of the project at hand.

    Raises:
        UserError: there is none.
    """
    if not project:
        raise UserError("There is no project yet.", "Choose New project above and give it a name.")
    folder = files.datasets() / files.check_name(project, "project")
    if not folder.is_dir():
        raise UserError(f"The project {project!r} is no longer there.", "Reload the page to see which there are.")
    return folder


def add(project: str, trigger: str, uploads: Sequence[str] | None) -> list[Any]:
    """Take uploaded files into the project; each that is refused is named with its reason."""
    paths = [Path(upload) for upload in uploads or ()]
    try:
        report = intake.add(folder_of(project), [(path.name, path) for path in paths])
    finally:
        for path in paths:  # Gradio's own copies, each in a folder of its own
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()
    return [_said(report.sentence(), bad=bool(report.refused)), None, *look(project, trigger)]


def _said(text: str, *, bad: bool = False) -> str:
    return f"<p role='status' class='{'said bad' if bad else 'said'}'>{escape(text)}</p>"


@answered
def save_caption(argument: dict[str, str]) -> dict[str, Any]:
    """Save one caption; called by the grid as it is typed."""
    project, name = str(argument["project"]), str(argument["name"])
    picture = media.find_picture(project, name)
    with _CHANGING:
        dataset.write_caption(picture, str(argument["text"])[:10_000])
    return {"badges": problems_of(picture.parent, memory.answer(project, "trigger")).get(name, [])}


def _change_all(folder: Path, change: Any) -> int:  # noqa: ANN401 - str -> str
    """Change every caption; returns how many became different. The captions before are kept for undo."""
    with _CHANGING:
        before = {path: dataset.read_caption(path) for path in dataset.pictures(folder)}
        after = {path: change(caption) for path, caption in before.items()}
        different = {path: caption for path, caption in after.items() if caption != before[path]}
        if different:
            dataset.snapshot(folder)
        for path, caption in different.items():
            dataset.write_caption(path, caption)
    return len(different)


def put_in_front(project: str, trigger: str) -> list[Any]:
    """Put the trigger word in front of every caption that lacks it."""
    folder, word = folder_of(project), dataset.one_line(trigger)
    if not word:
        raise UserError("There is no trigger word yet.", "Type one, such as miraxo.")
    memory.remember(project, "trigger", word)
    count = _change_all(folder, lambda caption: dataset.with_trigger(caption, word))
    text = f"Put {word!r} in front of {count} captions." if count else f"Every caption has {word!r} already."
    return [_said(text), *look(project, word)]


def replace_in_all(project: str, trigger: str, find: str, replacement: str) -> list[Any]:
    """Replace a text in every caption."""
    folder = folder_of(project)
    if not find:
        raise UserError("There is nothing to find.", "Type the text to replace.")
    count = _change_all(folder, lambda caption: dataset.one_line(caption.replace(find, replacement or "")))
    return [_said(f"Changed {count} captions."), *look(project, trigger)]


def undo_captions(project: str, trigger: str) -> list[Any]:
    """Take back the last change of all captions."""
    with _CHANGING:
        undone = dataset.undo_captions(folder_of(project))
    return [
        _said("Took back the last change." if undone else "There is nothing to take back."),
        *look(project, trigger),
    ]


def remove(project: str, trigger: str, event: gr.EventData) -> list[Any]:
    """Move a picture and its caption to the bin."""
    folder_of(project)
    picture = media.find_picture(project, str(event.name))
    dataset.remove(picture)
    return [_said(f"Removed {picture.name}."), *look(project, trigger, int(event.page))]


def bring_back(project: str, trigger: str) -> list[Any]:
    """Bring back the picture removed last."""
    found = dataset.restore_last(folder_of(project))
    return [_said("Brought it back." if found else "There is nothing to bring back."), *look(project, trigger)]


def turn_page(project: str, trigger: str, event: gr.EventData) -> list[Any]:
    """Show another page of the grid."""
    return look(project, trigger, int(event.page))
