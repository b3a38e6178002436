"""Tab 4: all runs with their files and which programs load them, other files, and tools for them."""

from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import runs
from trainer.errors import UserError
from trainer.i18n import say
from trainer.runs import View, archive
from ui.server import media
from ui.state import adapter_choices
from ui.state.run_watcher import Watch, label
from ui.tabs import file_tools
from ui.widgets import run_html
from ui.widgets.handlers import QUIET, handled
from ui.widgets.templates import read


@dataclass(frozen=True)
class Tab:
    """The components that `show` fills."""

    shown: list[Any]


def build(watch: Watch) -> Tab:
    """Draw the tab and connect it."""
    with gr.Row(elem_classes="bottom"):
        search = gr.Textbox(
            label=say("Find a run"), info=say("By its name, trigger word, or state."), max_lines=1,
            elem_id="find-run", interactive=True, scale=3,
        )  # fmt: skip
        undo = gr.Button(
            say("Bring back the run deleted last"), visible=False, size="sm", elem_id="restore-run", scale=1,
            min_width=200,
        )  # fmt: skip
    listing = gr.HTML(elem_id="runs", js_on_load=read("runs.js"))
    lower = file_tools.build(watch, listing, lambda: table(watch))
    gr.HTML(read("use.html"))
    shown = [listing, undo]

    def remove(query: str, event: gr.EventData) -> list[Any]:
        if event.file:
            adapter_choices.discard(str(event.file))
        else:
            archive.delete(runs.find(str(event.run)))
        return _listed(watch, query)

    def rename(query: str, event: gr.EventData) -> list[Any]:
        archive.rename(runs.find(str(event.run)), str(event.name))
        return _listed(watch, query)

    def bring_back(query: str) -> list[Any]:
        archive.restore_last()
        return _listed(watch, query)

    listing.delete(handled(remove), search, shown, **QUIET)
    listing.select(handled(rename), search, shown, **QUIET)
    undo.click(handled(bring_back), search, shown, **QUIET)
    search.change(handled(lambda query: _listed(watch, query)), search, shown, trigger_mode="always_last", **QUIET)
    return Tab([listing, undo, search, lower.chosen])


def show(watch: Watch) -> list[Any]:
    """Values of `Tab.shown`: all files as they are on disk."""
    return [*_listed(watch, ""), "", gr.Dropdown(adapter_choices.choices(watch)[:-1])]


def _listed(watch: Watch, query: str) -> list[Any]:
    return [table(watch, query), gr.Button(visible=bool(archive.deleted()))]


def table(watch: Watch, query: str = "") -> str:
    """All runs in which each word of a query occurs, the newest first, then the other files."""
    words = query.lower().split()
    rows = [_row(view) for view in watch.every() if all(word in _said(view) for word in words)]
    if words and not rows:
        return f"<div class='empty'>{escape(say('No run has “{query}”.', query=query.strip()))}</div>"
    if not rows and not adapter_choices.kept():
        return f"<div class='empty'>{say('No adapters yet. They appear here once training has begun.')}</div>"
    notes = (run_html.practice(view) for view in watch.every() if view.state.export)
    return f"{next(filter(None, notes), '')}<div class='runs'>{''.join(rows)}</div>{adapter_choices.table()}"


def _said(view: View) -> str:
    """Return the text that a search looks into."""
    return f"{label(view.run)} {view.run.id} {_trigger(view)} {run_html.WORDS[view.status]}".lower()


def _row(view: View) -> str:
    run, state = view.run, view.state
    facts = [say("step {step}", step=state.step)]
    if state.steps:
        facts = [say("step {step} of {steps}", step=state.step, steps=state.steps)]
    if state.updated:
        facts.append(say("{time:%d %b %Y, %H:%M}", time=state.updated.astimezone()))
    trigger = _trigger(view)
    if trigger:
        facts.append(say("trigger word {word}", word=f"<code>{escape(trigger)}</code>"))
    picture = max(state.previews, key=lambda one: one.step, default=None)
    image = (
        f"<img loading='lazy' alt='' src='/media/run/{quote(run.id)}/{quote(picture.file.rsplit('/', 1)[-1])}'>"
        if picture
        else "<div class='blank'></div>"
    )
    bin_button = ""
    if view.status not in runs.ACTIVE:
        data = f"data-run='{escape(run.id)}' data-label='{escape(label(run))}'"
        name = f"data-name='{escape(run.id[18:])}'"
        bin_button = (
            f"<span class='actions'><button type='button' class='rename' {data} {name}>{say('Rename')}</button>"
            f"<button type='button' class='bin' {data}>{say('Delete')}</button></span>"
        )
    return (
        f"<article class='run-row' data-run='{escape(run.id)}'>{image}<div><h2>{escape(label(run))} "
        f"<span class='pill {view.status}'>{run_html.WORDS[view.status]}</span></h2><p>{' &middot; '.join(facts)}</p>"
        f"<p class='links'>{_links(view)}{bin_button}</p>{_checked(view)}</div></article>"
    )


def _checked(view: View) -> str:
    """Render which programs load the run's files, as checked when they were written."""
    return "".join(
        adapter_choices.verdicts(one.verdicts, (*one.problems, *one.notes))
        for one in view.state.verified
        if (view.run.folder / one.file).is_file() and not one.file.startswith("peft/")
    )


def _trigger(view: View) -> str:
    try:
        return view.run.config().trigger
    except (UserError, OSError):  # a run whose settings cannot be read is still listed, so that it can be deleted
        return ""


def _links(view: View) -> str:
    run, links = view.run, []
    path = run.folder / view.state.export if view.state.export else None
    if path and path.is_file():
        link = f"/download/{quote(run.id)}/{quote(path.name)}"
        links.append(
            f"<a class='download' download href='{link}'>{escape(path.name)} "
            f"({adapter_choices.size(path.stat().st_size)})</a>"
        )
    if any((run.folder / one.file).is_file() for one in view.state.verified if one.file.startswith("peft/")):
        links.append(f"<a download href='/download/{quote(run.id)}/peft'>{say('in the form of diffusers')}</a>")
    checkpoints: list[Any] = sorted(view.state.checkpoints, key=lambda one: -one.step)
    found = [one.step for one in checkpoints if media.checkpoint_file(run, one.step).is_file()]
    if found:
        listed = " ".join(
            f"<a download href='/download/{quote(run.id)}/checkpoint/{step}'>{step}</a>" for step in found
        )
        links.append(f"<span class='quiet'>{say('as it was at step: {steps}', steps=listed)}</span>")
    return " ".join(links)
