"""Measured checkpoints in the Try out tab: the job for the run of the chosen adapter, its progress, and its table."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from limner_extensions.measuring import html, kinds
from limner_extensions.measuring import job as jobs
from limner_extensions.measuring.job import MeasureConfig
from trainer import config, paths, runs
from trainer.data.captions import one_line
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run, control
from ui import audit
from ui.state import adapter_choices, page_memory
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.widgets import run_html
from ui.widgets.fields import field
from ui.widgets.handlers import CHOICE, START, listen

REFRESHED_EVERY = 1.0  # seconds, while a job is active
ABOUT = _(
    "Generates images with each checkpoint of this adapter's run and with the base model, and compares them: how like "
    "the training images they are, whether they follow the prompt, and what changed without the trigger word. It can "
    "be stopped, and goes on where it was."
)
NO_RUN = _("Choose an adapter that was trained here.")


@dataclass(frozen=True)
class Panel:
    """The components. `drawn` are those that `draw` returns values for."""

    features: gr.Dropdown
    images: gr.Number
    start: gr.Button
    stop: gr.Button
    result: gr.HTML
    timer: gr.Timer

    @property
    def drawn(self) -> dict[str, Any]:
        """Components that change with the state of the job."""
        return {"result": self.result, "start": self.start, "stop": self.stop, "timer": self.timer}


def build(adapter: gr.Dropdown, sampler: SamplerClient, _watch: RunWatcher) -> None:
    """Draw the panel, and connect it to the choice of an adapter."""
    with gr.Accordion(_("Measure checkpoints"), open=False, elem_id="measure"):
        gr.HTML(f"<p class='quiet'>{escape(ABOUT)}</p>")
        with gr.Row():
            models = {"choices": kinds.choices(), "value": "", "allow_custom_value": True}
            other = _("Or the folder of a CLIP, DINO or DINOv2 model.")
            features = field(gr.Dropdown, "measure-features", _("Compare by the features of"), other, **models)
            each = _("For each checkpoint, and as many without the trigger word.")
            images = field(gr.Number, "measure-images", _("Images"), each, value=MeasureConfig().images)
        with gr.Row(elem_classes="tools"):
            start = gr.Button(_("Measure checkpoints"), elem_id="measure-start", size="sm", interactive=False)
            stop = gr.Button(_("Stop"), elem_id="measure-stop", size="sm", visible=False, variant="stop")
        result = gr.HTML(elem_id="measured")
    panel = Panel(features, images, start, stop, result, gr.Timer(REFRESHED_EVERY, active=False))
    _connect(panel, adapter, sampler)


def _connect(panel: Panel, adapter: gr.Dropdown, sampler: SamplerClient) -> None:
    def begin(key: str | None, features: str | None, images: float | None) -> dict[str, Any]:
        settings = {"features": paths.unquoted(one_line(features or "")), "images": images}
        return start(key, config.check(MeasureConfig, settings), sampler)

    key, drawn = {"key": adapter}, panel.drawn
    listen(panel.start.click, begin, {**key, "features": panel.features, "images": panel.images}, drawn, kind=START)
    listen(panel.stop.click, stop, key, drawn)
    listen(panel.timer.tick, draw, key, drawn, kind=CHOICE)
    listen(adapter.change, show, key, {"features": panel.features, **drawn}, kind=CHOICE)


def start(
    key: str | None, settings: MeasureConfig, sampler: SamplerClient, execute: Callable[[Run], None] = runs.start
) -> dict[str, Any]:
    """Start the job of an adapter's run, or let it go on; returns values of `Panel.drawn`.

    The sampler process ends first, so that the job has the device to itself.

    Raises:
        UserError: the adapter belongs to no run, or its checkpoints cannot be measured.
    """
    run = adapter_choices.run_of(key or "")
    if run is None:
        raise UserError("This adapter has no checkpoints to compare.", NO_RUN)
    if settings.features:
        kinds.look(settings.features)
    job = jobs.create(run, settings)
    page_memory.remember_of_page(feature_model=settings.features)
    sampler.close()
    execute(job)
    audit.record("measure", what=run.id)
    return draw(key)


def stop(key: str | None) -> dict[str, Any]:
    """Ask the job to stop, or end it if it did not react; returns values of `Panel.drawn`."""
    run = adapter_choices.run_of(key or "")
    if run and jobs.newest(run):
        control.stop(jobs.folder_of(run))
    return draw(key)


def show(key: str | None) -> dict[str, Any]:
    """Return the feature models to choose from, and values of `Panel.drawn` for an adapter."""
    choices = kinds.choices()
    last = page_memory.feature_model()
    if last not in [folder for _label, folder in choices]:
        choices.append((last, last))
    return {"features": gr.Dropdown(choices, value=last), **draw(key)}


def draw(key: str | None) -> dict[str, Any]:
    """Return values of `Panel.drawn` for an adapter: the progress of its run's job, and the table."""
    run = adapter_choices.run_of(key or "")
    view = jobs.newest(run) if run else None
    active = view is not None and view.status in runs.ACTIVE
    label = _("End now") if view and view.is_unresponsive(time.time()) else _("Stop")
    parts = [_status(view) if view else ""]
    if run is None:
        parts = [f"<p class='quiet'>{escape(NO_RUN)}</p>"]
    elif table := jobs.read_table(run):
        parts.append(html.render(table))
    return {
        "result": "".join(parts),
        "start": gr.Button(visible=not active, interactive=run is not None),
        "stop": gr.Button(label, visible=active),
        "timer": gr.Timer(active=active),
    }


def _status(view: runs.View) -> str:
    match view.status:
        case "failed":
            return run_html.failure(view.state)
        case "stopped" | "interrupted":
            text = _("Measuring was stopped. Click Measure checkpoints to go on.")
            return f"<p class='quiet' role='status'>{escape(text)}</p>"
        case "finished":
            return ""
    return run_html.work(view, _("Measuring"))
