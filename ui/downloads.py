"""Tab 4: all runs with their files, how to use them, and the way to the bin."""

from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import runs
from trainer.errors import UserError
from trainer.runs import View
from ui import media, progress
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
  if (button && confirm("Move the run " + button.dataset.label + " with all its files to the bin?"))
    trigger("delete", { run: button.dataset.run });
});"""


@dataclass(frozen=True)
class Tab:
    """The component that `table` fills."""

    listing: gr.HTML


def build(watch: Watch) -> Tab:
    """Draw the tab and connect it."""
    listing = gr.HTML(elem_id="runs", js_on_load=REMOVE)
    gr.HTML(HOW)

    def remove(event: gr.EventData) -> str:
        runs.delete(runs.find(str(event.run)))
        return table(watch)

    listing.delete(handled(remove), None, listing, api_visibility="private", show_progress="hidden")
    return Tab(listing)


def table(watch: Watch) -> str:
    """All runs, the newest first."""
    rows = "".join(_row(view) for view in watch.every())
    if not rows:
        return "<div class='empty'>No adapters yet. They appear here once training has begun.</div>"
    return f"<div class='runs'>{rows}</div>"


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
        f"<p class='links'>{_links(view)}{bin_button}</p></div></article>"
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
            f"<a class='download' download href='{link}'>{escape(path.name)} ({size(path.stat().st_size)})</a>"
        )
    checkpoints: list[Any] = sorted(view.state.checkpoints, key=lambda one: -one.step)
    found = [one.step for one in checkpoints if media.checkpoint_file(run, one.step).is_file()]
    if found:
        listed = " ".join(
            f"<a download href='/download/{quote(run.id)}/checkpoint/{step}'>{step}</a>" for step in found
        )
        links.append(f"<span class='quiet'>as it was at step: {listed}</span>")
    return " ".join(links)


def size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**20:.1f} MB" if count >= 2**20 else f"{max(1, round(count / 1024))} KB"
