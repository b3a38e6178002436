"""Download tab: all runs with their files and the programs that load them, other files, and tools for files."""

from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import runs
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import View, archive
from ui.state import adapter_choices, page_folders, run_actions
from ui.state.run_watcher import RunWatcher, label
from ui.tabs import file_tools
from ui.widgets import run_html
from ui.widgets.handlers import QUIET, handled
from ui.widgets.templates import read


@dataclass(frozen=True)
class Tab:
    """The components that `show` returns values for."""

    outputs: list[Any]


def build(watch: RunWatcher) -> Tab:
    """Draw the tab and connect it."""
    with gr.Row(elem_classes="bottom"):
        search = gr.Textbox(
            label=_("Find a run"),
            info=_("By name, trigger word or status."),
            max_lines=1,
            elem_id="find-run",
            interactive=True,
            scale=3,
        )
        undo = gr.Button(
            _("Restore the last deleted run"),
            visible=False,
            size="sm",
            elem_id="restore-run",
            scale=1,
            min_width=200,
        )
    listing = gr.HTML(elem_id="runs", js_on_load=read("runs.js"))
    tools = file_tools.build(watch, listing, lambda: table(watch))
    gr.HTML(read("use.html"))
    outputs = [listing, undo]

    def remove(query: str, event: gr.EventData) -> list[Any]:
        if event.file:
            adapter_choices.discard(str(event.file))
        else:
            run_actions.delete(str(event.run))
        return _listed(watch, query)

    def rename(query: str, event: gr.EventData) -> list[Any]:
        archive.rename(runs.find(str(event.run)), str(event.name))
        return _listed(watch, query)

    def restore(query: str) -> list[Any]:
        archive.restore_last()
        return _listed(watch, query)

    listing.delete(handled(remove), search, outputs, **QUIET)
    listing.select(handled(rename), search, outputs, **QUIET)
    undo.click(handled(restore), search, outputs, **QUIET)
    search.change(handled(lambda query: _listed(watch, query)), search, outputs, trigger_mode="always_last", **QUIET)
    return Tab([listing, undo, search, tools.adapters])


def show(watch: RunWatcher) -> list[Any]:
    """Return values of `Tab.outputs`: all files as they are on disk."""
    return [*_listed(watch, ""), "", gr.Dropdown(adapter_choices.choices(watch)[:-1])]


def _listed(watch: RunWatcher, query: str) -> list[Any]:
    return [table(watch, query), gr.Button(visible=bool(archive.deleted()))]


def table(watch: RunWatcher, query: str = "") -> str:
    """Render all runs that match every word of a query, the newest first, then the other files."""
    words = query.lower().split()
    views = watch.views()
    rows = [_row(view) for view in views if all(word in _searchable(view) for word in words)]
    if words and not rows:
        return f"<div class='empty'>{escape(_('No run matches “{query}”.', query=query.strip()))}</div>"
    if not rows and not adapter_choices.kept():
        return f"<div class='empty'>{_('No adapters yet. They appear here once training has started.')}</div>"
    notes = filter(None, (run_html.practice(view) for view in views if view.state.export))
    return f"{next(notes, '')}<div class='runs'>{''.join(rows)}</div>{adapter_choices.table()}"


def _searchable(view: View) -> str:
    """Return the text that a search looks into."""
    return f"{label(view.run)} {view.run.id} {_trigger(view)} {run_html.STATUS_LABELS[view.status]}".lower()


def _row(view: View) -> str:
    run = view.run
    return (
        f"<article class='run-row' data-run='{escape(run.id)}'>{_image(view)}<div><h2>{escape(label(run))} "
        f"<span class='pill {view.status}'>{run_html.STATUS_LABELS[view.status]}</span></h2><p>{_facts(view)}</p>"
        f"<p class='links'>{_links(view)}{_actions(view)}</p>{_verdicts(view)}</div></article>"
    )


def _image(view: View) -> str:
    """Render the newest preview, or a blank."""
    preview = max(view.state.previews, key=lambda preview: preview.step, default=None)
    if preview is None:
        return "<div class='blank'></div>"
    name = preview.file.rsplit("/", 1)[-1]
    return f"<img loading='lazy' alt='' src='/media/run/{quote(view.run.id)}/{quote(name)}'>"


def _facts(view: View) -> str:
    state = view.state
    facts = [_("step {step}", step=state.step)]
    if state.steps:
        facts = [_("step {step} of {steps}", step=state.step, steps=state.steps)]
    if state.updated:
        facts.append(_("{time:%d %b %Y, %H:%M}", time=state.updated.astimezone()))
    trigger = _trigger(view)
    if trigger:
        facts.append(_("trigger word {word}", word=f"<code>{escape(trigger)}</code>"))
    return " &middot; ".join(facts)


def _actions(view: View) -> str:
    """Render the link to a backup of a run, and the buttons that rename and delete it; "" while it is active."""
    if view.status in runs.ACTIVE:
        return ""
    run = view.run
    data = f"data-run='{escape(run.id)}' data-label='{escape(label(run))}'"
    name = f"data-name='{escape(run.id[18:])}'"
    backup = f"<a download href='/backup/run/{quote(run.id)}'>{_('Backup')}</a>"
    return (
        f"<span class='actions'>{backup}<button type='button' class='rename' {data} {name}>{_('Rename')}</button>"
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


def _links(view: View) -> str:
    run, links = view.run, []
    export = run.folder / view.state.export
    if view.state.export and export.is_file():
        url = f"/download/{quote(run.id)}/{quote(export.name)}"
        size = adapter_choices.size(export.stat().st_size)
        links.append(f"<a class='download' download href='{url}'>{escape(export.name)} ({size})</a>")
    peft_files = [verified.file for verified in view.state.verified if verified.file.startswith("peft/")]
    if any((run.folder / file).is_file() for file in peft_files):
        links.append(f"<a download href='/download/{quote(run.id)}/peft'>{_('in the format of diffusers')}</a>")
    steps = sorted((checkpoint.step for checkpoint in view.state.checkpoints), reverse=True)
    checkpoints = [
        f"<a download href='/download/{quote(run.id)}/checkpoint/{step}'>{step}</a>"
        for step in steps
        if page_folders.checkpoint_file(run, step).is_file()
    ]
    if checkpoints:
        links.append(f"<span class='quiet'>{_('checkpoints at step: {steps}', steps=' '.join(checkpoints))}</span>")
    return " ".join(links)
