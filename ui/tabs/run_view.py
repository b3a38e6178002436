"""Run view of the Train tab: status, loss curve and previews of a run, and the buttons that control it."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import gradio as gr

from trainer import runs
from trainer.config import comparison
from trainer.i18n import LANGUAGE, _
from trainer.runs import Run, queue
from ui.state import run_actions
from ui.state.run_watcher import RunWatcher, label, log_tail, stamp
from ui.state.sampler_client import SamplerClient
from ui.widgets import loss_chart, queue_list, run_html, settings_form
from ui.widgets.handlers import ACT, CHOICE, START, TICK, listen
from ui.widgets.templates import read

REFRESHED_EVERY = 1.0  # seconds, while a run is active
QUEUE = 3  # place of the queue in what was drawn
LOOKED_EVERY = 5.0  # seconds, for runs that were started elsewhere: a page that is left open costs little
NO_RUNS = f"<div class='empty'>{_('Nothing has been trained yet.')}</div>"
EMPTY = f"<div class='empty'>{_('The loss curve and preview images appear here once training starts.')}</div>"
NOTIFY = f"<label><input type='checkbox'> {_('Tell me with a sound when it has ended')}</label>"
TITLES = {".".join(entry.path): entry.title for entry in settings_form.entries()}
BUTTONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("pause", _("Pause"), {}),
    ("stop", _("Stop and save"), {"variant": "stop"}),
    ("resume", _("Resume"), {"variant": "primary"}),
    ("again", _("Train again"), {"variant": "primary"}),
    ("try-it", _("Try it out"), {"variant": "primary"}),
    ("more", _("Train more"), {}),
    ("save-now", _("Save now"), {}),
    ("preview-now", _("Preview now"), {}),
)
# Buttons that start a worker.
STARTS: dict[str, Callable[[str | None, SamplerClient], Run]] = {
    "resume": run_actions.resume,
    "more": run_actions.extend,
    "again": run_actions.retry,
}


class RunView:
    """The components of the view; `outputs` are those that `draw` and `tick` return values for."""

    def __init__(self, pill: gr.HTML) -> None:
        with gr.Row(elem_classes="tools"):
            self.picker = gr.Dropdown(
                [], label=_("Run"), elem_id="run", interactive=True, container=False, min_width=160, scale=2
            )
            self.compared = gr.Dropdown(
                [],
                label=_("Compare the loss with"),
                elem_id="compared-runs",
                multiselect=True,
                interactive=True,
                visible=False,
                container=False,
                min_width=160,
            )
        self.drawn = gr.State(())
        self.shown = gr.Textbox(visible=False)  # the checksum of `drawn` that the browser has: answers may come late
        self.timer = gr.Timer(REFRESHED_EVERY)
        status = gr.HTML(NO_RUNS, elem_id="status")
        self.queue = gr.HTML(elem_id="queue", js_on_load=read("queue.js"))
        gr.HTML(NOTIFY, js_on_load=read("notify.js"), elem_id="notify")
        with gr.Row(elem_classes="tools"):
            self.buttons = {
                name: gr.Button(title, size="sm", visible=False, elem_id=name, **options)
                for name, title, options in BUTTONS
            }
        previews = gr.HTML(elem_id="previews")
        chart = gr.HTML({}, html_template=read("chart.html"), js_on_load=read("chart.js"), elem_id="chart")
        notes = gr.HTML(elem_id="notes")
        with gr.Accordion(_("Log"), open=False, elem_id="log"):
            log = gr.Textbox(
                lines=12, max_lines=12, show_label=False, interactive=False, elem_id="log-text", buttons=["copy"]
            )
        self.outputs: dict[str, Any] = {
            "pill": pill,
            "picker": self.picker,
            "compared": self.compared,
            "drawn": self.drawn,
            "shown": self.shown,
            "timer": self.timer,
            "queue": self.queue,
            "status": status,
            "chart": chart,
            "previews": previews,
            "notes": notes,
            "log": log,
            **self.buttons,
        }


def connect(view: RunView, project: gr.Dropdown, sampler: SamplerClient, watch: RunWatcher) -> None:
    """Connect the buttons, and the timer that refreshes the view."""
    run = {"run_id": view.picker}
    commands: dict[str, runs.Command] = {"stop": "stop", "save-now": "checkpoint", "preview-now": "preview"}
    for button, command in commands.items():
        listen(view.buttons[button].click, partial(run_actions.ask, command=command), run, kind=ACT)

    def pause(run_id: str | None) -> dict[str, Any]:
        return draw(watch, run_actions.toggle_pause(run_id, sampler).id)

    listen(view.buttons["pause"].click, pause, run, view.outputs, kind=ACT)
    for button, action in STARTS.items():

        def begin(run_id: str | None, action: Callable[[str | None, SamplerClient], Run] = action) -> dict[str, Any]:
            return draw(watch, action(run_id, sampler).id)

        listen(view.buttons[button].click, begin, run, view.outputs, kind=START)

    def arrange(event: gr.EventData, run_id: str, compared: list[str], project: str) -> dict[str, Any]:
        run_actions.arrange(str(event.run), str(event.act), int(event.place))
        return draw(watch, run_id, compared, project)

    picked = {**run, "compared": view.compared, "project": project}
    listen(view.queue.select, arrange, picked, view.outputs, kind=ACT)
    listen([view.picker.input, view.compared.input], partial(draw, watch), picked, view.outputs, kind=CHOICE)

    def refresh(drawn: tuple[Any, ...], shown: str, run_id: str, compared: list[str], project: str) -> dict[str, Any]:
        known = drawn if shown == checksum(drawn) else ()
        return tick(watch, run_id, known, compared, project)

    known = {"drawn": view.drawn, "shown": view.shown}
    listen(view.timer.tick, refresh, {**picked, **known}, view.outputs, kind=TICK)


def draw(
    watch: RunWatcher, run_id: str | None, compared: Sequence[str] = (), project: str | None = ""
) -> dict[str, Any]:
    """Return values of `RunView.outputs` for a run, whatever was drawn before; its loss beside that of other runs."""
    return tick(watch, run_id, (), compared, project, choose=True)


def tick(
    watch: RunWatcher,
    run_id: str | None,
    drawn: tuple[Any, ...],
    compared: Sequence[str] = (),
    project: str | None = "",
    *,
    choose: bool = False,
) -> dict[str, Any]:
    """Return values of `RunView.outputs`, in their order; none if what was `drawn` last is still the current state.

    Unless told to `choose` the run in the list of runs, it does so only if another one is to be shown: the answer may
    arrive after the user has chosen or started a run.
    """
    listed, training = watch.runs_and_active(project or "")
    active = training[0] if training else None
    known = [run.id for run in listed]
    before = drawn[0] if drawn else known
    view = watch.find(run_id)
    is_new = active is not None and active.run.id not in before
    if view is None or (view.status not in runs.ACTIVE and is_new):
        view = watch.find(watch.default(project or ""))  # another page started a run
    others = [other for other in map(watch.find, compared or ()) if other and view and other.run.id != view.run.id]
    line = queue.line()
    waiting = tuple((run.id, run.on_hold) for run in line)
    state = (known, stamp(view), (stamp(active), len(training)), waiting, *map(stamp, others))
    picker = others_picker = gr.skip()
    if tuple(drawn) == state:
        return {}
    chosen = view.run.id if view else None
    if not drawn or before != known or chosen != run_id:
        choices = [(label(run), run.id) for run in listed]
        choice = {"value": chosen} if choose or chosen != run_id else {}
        picker = gr.Dropdown(choices, visible=bool(choices), **choice)
        rest = [choice for choice in choices if choice[1] != chosen]
        others_picker = gr.Dropdown(
            rest, value=[other.run.id for other in others], multiselect=True, visible=bool(rest)
        )
    timer = gr.Timer(REFRESHED_EVERY if active else LOOKED_EVERY)
    listed_queue = gr.skip() if drawn and drawn[QUEUE] == waiting else queue_list.render(line)
    return {
        "pill": run_html.pill(active, len(training) - 1),
        "picker": picker,
        "compared": others_picker,
        "drawn": state,
        "shown": checksum(state),
        "timer": timer,
        "queue": listed_queue,
        **_parts(view, others),
    }


def checksum(state: tuple[Any, ...]) -> str:
    """Return a short text that tells the state that was drawn from others."""
    return f"{crc32(repr(state).encode()):08x}"


def _parts(view: runs.View | None, others: Sequence[runs.View]) -> dict[str, Any]:
    if view is None:
        nothing = {"status": EMPTY, "chart": {}, "previews": "", "notes": "", "log": ""}
        return nothing | {name: gr.Button(visible=False) for name, *_ in BUTTONS}
    return {
        "status": run_html.status(view),
        "chart": loss_chart.chart([(label(shown.run), shown) for shown in (view, *others)]),
        "previews": run_html.previews(view),
        "notes": run_html.warnings(view.state),
        "log": log_tail(view.run),
        **_buttons(view),
    }


def _buttons(view: runs.View) -> dict[str, gr.Button]:
    """Return the buttons with their labels, in the order of `BUTTONS`; they depend on the state alone."""
    status, change = view.status, view.state.change
    active, running = status in runs.ACTIVE, status == "running"
    fix = ", ".join(f"{_title(path)} {comparison.shown(value) or _('empty')}" for path, value in change.items())
    pause, stop, again = _("Pause"), _("Stop and save"), _("Train again")
    if view.paused:
        pause = _("Continue")
    if change:
        again = _("Train again with {settings}", settings=fix)
    if view.is_unresponsive(time.time()):
        stop = _("End now")
    more = _("Train {steps} more steps", steps=run_actions.extra_steps(view))
    return {
        "pause": gr.Button(pause, visible=running),
        "stop": gr.Button(stop, visible=active),
        "resume": gr.Button(visible=status in ("stopped", "interrupted", "failed")),
        "again": gr.Button(again, visible=status == "failed"),
        "try-it": gr.Button(visible=status == "finished"),
        "more": gr.Button(more, visible=status == "finished"),
        "save-now": gr.Button(visible=running),
        "preview-now": gr.Button(visible=running),
    }


def _title(path: str) -> str:
    """Return a setting's title inside a sentence: lower case in English, not in German."""
    title = TITLES.get(path, path)
    return title.lower() if LANGUAGE == "en" else title
