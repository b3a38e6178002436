"""Tab 4: all runs with their files and which programs load them, other files, and tools for them."""

from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import archive, runs
from trainer.errors import UserError
from trainer.runs import View
from ui import adapters, media, progress, tools
from ui.handling import handled
from ui.watch import Watch, label

HOW = """<details class='notes'><summary>How to use the file</summary>
<p>Put the <b>.safetensors</b> file into the LoRA folder of your program: <b>ComfyUI</b> (models/loras),
<b>A1111</b> or <b>Forge</b> (models/Lora), <b>InvokeAI</b>, or load it with <b>diffusers</b>
(<code>pipeline.load_lora_weights(file)</code>). Choose the base model that it was trained on, and write the trigger
word in the prompt.</p><p>An adapter of the built-in base Micro works with Micro only, here and with
<code>limner sample</code>.</p></details>"""
REMOVE = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button.bin");
  if (!button) return;
  const what = button.dataset.run ? "the run " + button.dataset.label + " with all its files" : button.dataset.label;
  if (confirm("Move " + what + " to the bin?"))
    trigger("delete", { run: button.dataset.run || "", file: button.dataset.file || "" });
});"""


@dataclass(frozen=True)
class Tab:
    """The components that `show` fills."""

    shown: list[Any]


def build(watch: Watch) -> Tab:
    """Draw the tab and connect it."""
    listing = gr.HTML(elem_id="runs", js_on_load=REMOVE)
    lower = tools.build(watch, listing, lambda: table(watch))
    gr.HTML(HOW)

    def remove(event: gr.EventData) -> str:
        if event.file:
            adapters.discard(str(event.file))
        else:
            archive.delete(runs.find(str(event.run)))
        return table(watch)

    listing.delete(handled(remove), None, listing, api_visibility="private", show_progress="hidden")
    return Tab([listing, lower.chosen])


def show(watch: Watch) -> list[Any]:
    """All files as they are on disk."""
    return [table(watch), gr.Dropdown(adapters.choices(watch)[:-1])]


def table(watch: Watch) -> str:
    """All runs, the newest first, then the other files."""
    rows = "".join(_row(view) for view in watch.every())
    if not rows and not adapters.kept():
        return "<div class='empty'>No adapters yet. They appear here once training has begun.</div>"
    return f"<div class='runs'>{rows}</div>{adapters.table()}"


def _row(view: View) -> str:
    run, state = view.run, view.state
    facts = [f"step {state.step}" + (f" of {state.steps}" if state.steps else "")]
    if state.updated:
        facts.append(f"{state.updated.astimezone():%d %b %Y, %H:%M}")
    trigger = _trigger(view)
    if trigger:
        facts.append(f"trigger word <code>{escape(trigger)}</code>")
    picture = max(state.previews, key=lambda one: one.step, default=None)
    image = (
        f"<img loading='lazy' alt='' src='/media/run/{quote(run.id)}/{quote(picture.file.rsplit('/', 1)[-1])}'>"
        if picture
        else "<div class='blank'></div>"
    )
    bin_button = ""
    if view.status not in runs.ACTIVE:
        data = f"data-run='{escape(run.id)}' data-label='{escape(label(run))}'"
        bin_button = f"<button type='button' class='bin' {data}>Delete</button>"
    return (
        f"<article class='run-row' data-run='{escape(run.id)}'>{image}<div><h2>{escape(label(run))} "
        f"<span class='pill {view.status}'>{progress.WORDS[view.status]}</span></h2><p>{' &middot; '.join(facts)}</p>"
        f"<p class='links'>{_links(view)}{bin_button}</p>{_checked(view)}</div></article>"
    )


def _checked(view: View) -> str:
    """What the programs make of the run's files, as it was found when they were written."""
    return "".join(
        adapters.verdicts(one.verdicts, (*one.problems, *one.notes))
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
            f"<a class='download' download href='{link}'>{escape(path.name)} ({adapters.size(path.stat().st_size)})</a>"
        )
    if any((run.folder / one.file).is_file() for one in view.state.verified if one.file.startswith("peft/")):
        links.append(f"<a download href='/download/{quote(run.id)}/peft'>in the form of diffusers</a>")
    checkpoints: list[Any] = sorted(view.state.checkpoints, key=lambda one: -one.step)
    found = [one.step for one in checkpoints if media.checkpoint_file(run, one.step).is_file()]
    if found:
        listed = " ".join(
            f"<a download href='/download/{quote(run.id)}/checkpoint/{step}'>{step}</a>" for step in found
        )
        links.append(f"<span class='quiet'>as it was at step: {listed}</span>")
    return " ".join(links)
