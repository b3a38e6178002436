"""Download tab: the runs with their files and the programs that load them, and other files."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from html import escape
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import extension, runs
from trainer.errors import UserError
from trainer.i18n import _, duration, ngettext
from trainer.runs import View, archive, checkpoints
from ui.state import adapter_choices, pending_uploads, run_actions, run_settings
from ui.state.run_watcher import RunWatcher, label, name
from ui.widgets import run_html
from ui.widgets.fields import field
from ui.widgets.handlers import ANSWERED_FIRST, CHOICE, VIEW, Several, listen, listen_at_end
from ui.widgets.templates import read

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
    gr.HTML(read("use.html"))
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
        description = adapter_choices.describe(Path(path))
        if "role='alert'" not in description:
            adapter_choices.keep(Path(path))
    finally:
        pending_uploads.discard([Path(path)])
    return description


def listed(watch: RunWatcher, chosen: Filter) -> dict[str, Any]:
    """Return values of `Tab.outputs`: the files as they are on disk, and the button that brings back a deleted run."""
    drawn = table(watch, chosen.query, "" if chosen.is_everywhere else chosen.project or "")
    return {"listing": drawn, "undo": gr.Button(visible=bool(archive.deleted()))}


def table(watch: RunWatcher, query: str | None = "", project: str = "") -> str:
    """Render the runs of a project, or of all, that match every word of a query, the newest first; then other files."""
    query = (query or "").strip()
    words = query.lower().split()
    views = [watch.view(run) for run in watch.runs_of(project)]
    rows = [_row(view) for view in views if all(word in _searchable(view) for word in words)]
    if words and not rows:
        return f"<div class='empty'>{escape(_('No run matches “{query}”.', query=query))}</div>"
    if not rows and not adapter_choices.kept():
        return f"<div class='empty'>{_('No adapters yet. They appear here once training has started.')}</div>"
    notes = filter(None, (run_html.practice(view) for view in views if view.state.export))
    few = " few" * (len(views) < SEARCHED_FROM)
    return f"{next(notes, '')}<div class='runs{few}'>{''.join(rows)}</div>{adapter_choices.table()}"


def _searchable(view: View) -> str:
    """Return the text that a search looks into."""
    return f"{label(view.run)} {view.run.id} {_trigger(view)} {run_html.status_label(view)}".lower()


def _row(view: View) -> str:
    """Render an adapter: its image, name, trigger word and file are in sight, the rest is one click away."""
    run, status = view.run, ""
    if view.status != "finished":
        status = f"<span class='pill {view.status}'>{run_html.status_label(view)}</span>"
    file, kept = run_html.export_link(view, _("Download")), _checkpoints(view)
    rest = f"{_peft_link(view)} {file and kept}"
    return (
        f"<article class='run-row' data-run='{escape(run.id)}'>{_image(view)}<h2>{escape(name(run))} {status}</h2>"
        f"{_trigger_word(view)}{_facts(view)}{_settings(view)}<p class='links'>{file or kept}</p>{_verdicts(view)}"
        f"<details class='more'><summary>{_('More')}</summary>"
        f"<p class='links'>{rest}{_actions(view)}</p></details></article>"
    )


def _image(view: View) -> str:
    """Render the newest preview, or that there are none."""
    return run_html.newest_image(view, label(view.run)) or f"<div class='blank'>{_('No preview')}</div>"


def _trigger_word(view: View) -> str:
    trigger = escape(_trigger(view))
    if not trigger:
        return ""
    copy = f"<button type='button' class='copy' data-text='{trigger}'>{_('Copy')}</button>"
    return f"<p class='trigger' title='{_('Trigger word')}'><code>{trigger}</code> {copy}</p>"


def _facts(view: View) -> str:
    """Render the base model, the step, how long that took, and when it was."""
    state, facts = view.state, []
    with suppress(UserError, OSError):  # its settings cannot be read
        facts.append(escape(PurePath(view.run.config().model.base).name))
    if state.steps and state.step < state.steps:
        facts.append(_("step {step} of {steps}", step=state.step, steps=state.steps))
    else:
        facts.append(ngettext("{n} step", "{n} steps", state.step))
    if state.seconds:
        facts.append(duration(state.seconds))
    if state.updated:
        facts.append(when(state.updated))
    return f"<p class='quiet'>{' &middot; '.join(facts)}</p>"


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


def _settings(view: View) -> str:
    """Render the settings that differ from the preset, by which runs of one name are told apart; else ""."""
    described = run_settings.described(view.run)
    return f"<p class='quiet'>{escape(described)}</p>" * bool(described)


def _actions(view: View) -> str:
    """Render the button that uses the settings of a run again, and if it has ended, those that move it."""
    run = view.run
    again = f"<button type='button' class='again' data-run='{escape(run.id)}'>{_('Use these settings')}</button>"
    shared = "".join(links(view) for links in extension.panels("run-links"))
    if view.status in runs.ACTIVE:
        return f"<span class='actions'>{shared}{again}</span>"
    data = f"data-run='{escape(run.id)}' data-label='{escape(label(run))}'"
    name = f"data-name='{escape(run.id[18:])}'"
    backup = f"<a download href='/backup/run/{quote(run.id)}'>{_('Backup')}</a>"
    return (
        f"<span class='actions'>{shared}{backup}{again}"
        f"<button type='button' class='rename' {data} {name}>{_('Rename')}</button>"
        f"<button type='button' class='bin' {data}>{_('Delete')}</button></span>"
    )


def _verdicts(view: View) -> str:
    """Render which programs load the run's files, as checked when they were written."""
    return "".join(
        adapter_choices.verdicts(verified.verdicts, (*verified.problems, *verified.notes))
        for verified in view.state.verified
        if (view.run.folder / verified.file).is_file() and not verified.file.startswith("peft/")
    )


def _trigger(view: View) -> str:
    try:
        return view.run.config().trigger
    except (UserError, OSError):  # a run whose settings cannot be read is still listed, so that it can be deleted
        return ""


def _peft_link(view: View) -> str:
    """Render the link to the file in diffusers' format; "" if there is none."""
    files = [verified.file for verified in view.state.verified if verified.file.startswith("peft/")]
    if not any((view.run.folder / file).is_file() for file in files):
        return ""
    return f"<a download href='/download/{quote(view.run.id)}/peft'>{_('in the format of diffusers')}</a>"


def _checkpoints(view: View) -> str:
    """Render the links to the adapter files of the checkpoints that are kept; "" if there are none."""
    run, steps = view.run, sorted((checkpoint.step for checkpoint in view.state.checkpoints), reverse=True)
    kept = [
        f"<a download href='/download/{quote(run.id)}/checkpoint/{step}'>{step}</a>"
        for step in steps
        if checkpoints.adapter_file(run, step).is_file()
    ]
    if not kept:
        return ""
    return f"<span class='quiet'>{_('checkpoints at step: {steps}', steps=' '.join(kept))}</span>"
