"""Download tab: the runs with their files and the programs that load them, and other files."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import gradio as gr

from trainer import extension, runs
from trainer.errors import UserError
from trainer.i18n import _, duration, ngettext
from trainer.runs import View, archive, checkpoints, events
from ui.state import adapter_choices, pending_uploads, run_actions, run_settings
from ui.state.run_watcher import RunWatcher, label, name
from ui.templates import render
from ui.widgets import run_html
from ui.widgets.fields import field
from ui.widgets.handlers import ANSWERED_FIRST, CHOICE, VIEW, Several, listen, listen_at_end
from ui.widgets.scripts import read

SEARCHED_FROM = 5  # runs


@dataclass(frozen=True)
class Filter:
    """Runs to list: those that match a query, of a project or of all."""

    query: str | None
    project: str | None
    is_everywhere: bool


@dataclass(frozen=True)
class Tab:
    """The components that `listed` takes and fills, and the list of runs, whose `apply` asks to train like one."""

    takes: Mapping[str, Any]
    outputs: Mapping[str, Any]
    listing: gr.HTML


def build(project: gr.Textbox, watch: RunWatcher) -> Tab:
    """Draw the tab and connect it."""
    with gr.Row(elem_classes="bottom"):
        about = _("By name, trigger word or status.")
        search = field(gr.Textbox, "find-run", _("Find a run"), about, max_lines=1, scale=3)
        everywhere = field(gr.Checkbox, "all-projects", _("Of all projects"))
        undo = gr.Button(
            _("Restore the last deleted run"), visible=False, size="sm", elem_id="restore-run", scale=1, min_width=200
        )
    listing = gr.HTML(elem_id="runs", js_on_load=read("runs.js"))
    fields = {"query": search, "project": project, "is_everywhere": everywhere}
    filtered = {"chosen": Several(fields, lambda values: Filter(**values))}
    with gr.Accordion(_("Inspect an adapter file"), open=False, elem_id="look"):
        dropped = gr.File(
            label=_("Any .safetensors file. A copy stays here, so that you can try it out."),
            file_types=[".safetensors"],
            elem_id="look-file",
            interactive=True,
        )
        description = gr.HTML(elem_id="look-result")
    gr.HTML(render("use.html"))
    listed_in = {"listing": listing, "undo": undo}

    def remove(event: gr.EventData) -> None:
        if event.file:
            adapter_choices.discard(str(event.file))
        else:
            run_actions.delete(str(event.run))

    def rename(event: gr.EventData) -> None:
        archive.rename(runs.find(str(event.run)), str(event.name))

    def restore() -> None:
        archive.restore_last()

    def look(path: str | None) -> dict[str, Any]:
        return {"path": None, "description": take(path)}

    looking = {"path": dropped, "description": description}
    acts = [listen(listing.delete, remove), listen(listing.select, rename)]
    acts.append(listen(undo.click, restore, js=ANSWERED_FIRST))
    acts.append(listen(dropped.upload, look, {"path": dropped}, looking, show_progress="minimal"))
    draw = partial(listed, watch)
    for act in acts:  # what is searched for by then is listed, however late the act is answered
        listen_at_end(act, draw, filtered, listed_in, kind=VIEW)
    listen([search.change, everywhere.input], draw, filtered, listed_in, kind=CHOICE)
    return Tab(filtered, listed_in, listing)


def take(path: str | None) -> str:
    """Keep a dropped file if it is valid; returns a description of it."""
    if not path:
        return ""
    try:
        described = adapter_choices.describe(Path(path))
        if described.is_valid:
            adapter_choices.keep(Path(path))
    finally:
        pending_uploads.discard([Path(path)])
    return described.html


def listed(watch: RunWatcher, chosen: Filter) -> dict[str, Any]:
    """Return values of `Tab.outputs`: the files as they are on disk, and the button that brings back a deleted run."""
    drawn = table(watch, chosen.query, "" if chosen.is_everywhere else chosen.project or "")
    return {"listing": drawn, "undo": gr.Button(visible=bool(archive.deleted()))}


def table(watch: RunWatcher, query: str | None = "", project: str = "") -> str:
    """Render the runs of a project, or of all, that match every word of a query, the newest first; then other files."""
    query = (query or "").strip()
    words = query.lower().split()
    views = [watch.view(run) for run in watch.runs_of(project)]
    chosen = [view for view in views if all(word in _searchable(view) for word in words)]
    if words and not chosen:
        return render("empty.html", text=_("No run matches “{query}”.", query=query))
    if not chosen and not adapter_choices.kept():
        return render("empty.html", text=_("No adapters yet. They appear here once training has started."))
    notes = filter(None, (run_html.practice(view) for view in views if view.state.export))
    rows = [_row(view) for view in chosen]
    is_few = len(views) < SEARCHED_FROM
    return render("runs.html", practice=next(notes, ""), few=is_few, runs=rows, others=adapter_choices.table())


def _searchable(view: View) -> str:
    """Return the text that a search looks into."""
    return f"{label(view.run)} {view.run.id} {_trigger(view)} {run_html.status_label(view)}".lower()


def _row(view: View) -> dict[str, Any]:
    """Return what is drawn of a run: its image, name, trigger word and file in sight, the rest one click away."""
    run, state = view.run, view.state
    steps = sorted((checkpoint.step for checkpoint in state.checkpoints), reverse=True)
    here = [verified for verified in state.verified if (run.folder / verified.file).is_file()]
    is_peft = [verified.file.startswith("peft/") for verified in here]
    return {
        "id": run.id,
        "name": name(run),
        "label": label(run),
        "image": run_html.newest_image(view, label(run)),
        "status": view.status,
        "status_label": run_html.status_label(view),
        "is_active": view.status in runs.ACTIVE,
        "trigger": _trigger(view),
        "facts": _facts(view),
        "settings": run_settings.described(run),
        "file": run_html.export(view),
        "checkpoints": [step for step in steps if checkpoints.adapter_file(run, step).is_file()],
        "has_peft": any(is_peft),
        "verdicts": [_verdicts(verified) for verified, peft in zip(here, is_peft, strict=True) if not peft],
        "links": [links(view) for links in extension.panels("run-links")],
    }


def _facts(view: View) -> list[str]:
    """Return the base model, the step, how long that took, and when it was."""
    state, facts = view.state, []
    with suppress(UserError, OSError):  # its settings cannot be read
        facts.append(PurePath(view.run.config().model.base).name)
    if state.steps and state.step < state.steps:
        facts.append(_("step {step} of {steps}", step=state.step, steps=state.steps))
    else:
        facts.append(ngettext("{n} step", "{n} steps", state.step))
    if state.seconds:
        facts.append(duration(state.seconds))
    if state.updated:
        facts.append(when(state.updated))
    return facts


def when(time: datetime) -> str:
    """Return a time as people say it."""
    local = time.astimezone()
    match (datetime.now(local.tzinfo).date() - local.date()).days:
        case 0:
            return _("today, {time:%H:%M}", time=local)
        case 1:
            return _("yesterday, {time:%H:%M}", time=local)
        case _unused:
            return _("{time:%d %b %Y, %H:%M}", time=local)


def _verdicts(verified: events.Verified) -> str:
    """Render which programs load a file of a run, as checked when it was written."""
    return adapter_choices.verdicts(verified.verdicts, (*verified.problems, *verified.notes))


def _trigger(view: View) -> str:
    try:
        return view.run.config().trigger
    except (UserError, OSError):  # a run whose settings cannot be read is still listed, so that it can be deleted
        return ""
