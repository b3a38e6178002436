"""The live view of a run in tab 2: where it is, its loss and previews, and what can be asked of it."""

import json
import time
from typing import Any

import gradio as gr

from trainer import config as configs
from trainer import runs
from trainer.errors import UserError
from trainer.i18n import LANGUAGE, say
from trainer.runs import archive, control
from ui.state.run_watcher import Watch, label, log_tail, stamp
from ui.state.sampler_client import Painter
from ui.widgets import run_html, settings_form
from ui.widgets.handlers import QUIET, handled
from ui.widgets.templates import read

NOTHING = f"<div class='empty'>{say('Nothing has been trained yet.')}</div>"
EMPTY = f"<div class='empty'>{say('The loss curve and preview pictures appear here once training starts.')}</div>"
TITLES = {".".join(entry.path): entry.title for entry in settings_form.entries()}
BUTTONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("pause", say("Pause"), {}),
    ("stop", say("Stop and save"), {"variant": "stop"}),
    ("resume", say("Resume"), {"variant": "primary"}),
    ("again", say("Train again"), {"variant": "primary"}),
    ("try-it", say("Try it out"), {"variant": "primary"}),
    ("more", say("Train more"), {}),
    ("save-now", say("Save now"), {}),
    ("preview-now", say("Preview now"), {}),
)


class Live:
    """The components of the view; `outputs` are those that `draw` and `tick` give values for."""

    def __init__(self, pill: gr.HTML) -> None:
        self.picker = gr.Dropdown(
            [], label=say("Run"), elem_id="run", interactive=True, container=False, elem_classes="run"
        )  # fmt: skip
        self.seen = gr.State(())
        status = gr.HTML(NOTHING, elem_id="status")
        with gr.Row(elem_classes="tools"):
            self.buttons = {
                name: gr.Button(words, size="sm", visible=False, elem_id=name, **look) for name, words, look in BUTTONS
            }
        chart = gr.HTML(elem_id="chart")
        previews = gr.HTML(elem_id="previews", js_on_load=read("enlarge.js"))
        notes = gr.HTML(elem_id="notes")
        with gr.Accordion(say("Log"), open=False, elem_id="log"):
            log = gr.Textbox(
                lines=12, max_lines=12, show_label=False, interactive=False, elem_id="log-text", buttons=["copy"]
            )
        self.outputs = [pill, self.picker, self.seen, status, chart, previews, notes, log, *self.buttons.values()]


def connect(live: Live, painter: Painter, watch: Watch) -> None:
    """Connect the buttons, and the timer that refreshes the view."""
    for button, command in (("stop", "stop"), ("save-now", "checkpoint"), ("preview-now", "preview")):
        live.buttons[button].click(
            handled(lambda run, command=command: ask(run, command)), live.picker, None, **QUIET
        )  # fmt: skip
    live.buttons["pause"].click(handled(lambda run: pause(run, watch)), live.picker, live.outputs, **QUIET)
    for button, act in (("resume", go_on), ("more", more), ("again", again)):
        live.buttons[button].click(
            handled(lambda run, act=act: act(run, painter, watch)), live.picker, live.outputs,
            trigger_mode="once", concurrency_limit=1, **QUIET,
        )  # fmt: skip
    live.picker.input(handled(lambda run: draw(watch, run)), live.picker, live.outputs, **QUIET)
    timer = gr.Timer(1)
    timer.tick(
        handled(lambda run, seen: tick(watch, run, seen)), [live.picker, live.seen], live.outputs, queue=False, **QUIET
    )  # fmt: skip


def draw(watch: Watch, run_id: str | None) -> list[Any]:
    """Values of `Live.outputs` for a run, whatever was shown before."""
    return tick(watch, run_id, None)


def tick(watch: Watch, run_id: str | None, seen: Any) -> list[Any] | Any:  # noqa: ANN401 - what was drawn last
    """Values of `Live.outputs`, or nothing at all if the page shows the present already."""
    known = [run.id for run in runs.all_runs()]
    before = seen[0] if seen else known
    view, active = watch.find(run_id), watch.active()
    if view is None or (view.status not in runs.ACTIVE and active and active.run.id not in before):
        view = watch.find(watch.default())  # another page started a run
    now = (known, stamp(view), stamp(active))
    if seen and now == tuple(seen):
        return gr.skip()
    choices = [(label(run), run.id) for run in runs.all_runs()]
    chosen = view.run.id if view else None
    unchanged = seen is not None and bool(seen) and seen[0] == known and chosen == run_id
    picker = gr.skip() if unchanged else gr.Dropdown(choices, value=chosen, visible=bool(choices))
    return [run_html.pill(active), picker, now, *_drawn(view)]


def _drawn(view: runs.View | None) -> list[Any]:
    if view is None:
        return [EMPTY, "", "", "", "", *(gr.Button(visible=False) for _ in BUTTONS)]
    texts = [
        run_html.status(view), run_html.chart(view.state), run_html.previews(view), run_html.warnings(view.state),
        log_tail(view.run),
    ]  # fmt: skip
    return [*texts, *_buttons(view)]


def _buttons(view: runs.View) -> list[gr.Button]:
    """Return the buttons and their labels: a function of the state alone."""
    status, change = view.status, view.state.change
    active, running = status in runs.ACTIVE, status == "running"
    words = ", ".join(f"{_name(path)} {_value(value)}" for path, value in change.items())
    return [
        gr.Button(say("Go on") if view.paused else say("Pause"), visible=running),
        gr.Button(say("End now") if view.is_unresponsive(time.time()) else say("Stop and save"), visible=active),
        gr.Button(visible=status in ("stopped", "interrupted", "failed")),
        gr.Button(say("Train again with {settings}", settings=words), visible=status == "failed" and bool(change)),
        gr.Button(visible=status == "finished"),
        gr.Button(say("Train {steps} steps more", steps=extra(view)), visible=status == "finished"),
        gr.Button(visible=running),
        gr.Button(visible=running),
    ]


def _name(path: str) -> str:
    """A setting's title inside a sentence; English writes it small there, German does not."""
    title = TITLES.get(path, path)
    return title.lower() if LANGUAGE == "en" else title


def _value(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, int | float) else value


def extra(view: runs.View) -> int:
    """Return the steps that "Train more" adds: half of what there were."""
    return max(10, view.state.steps // 2)


# What can be asked of a run -------------------------------------------------------------------------------------


def ask(run_id: str | None, command: runs.Command) -> None:
    """Ask the shown run for something; it answers after its present step."""
    run = runs.find(run_id or "")
    if runs.look(run).status not in runs.ACTIVE:
        raise UserError("This run is not at work.", "Resume it first.")
    if command == "stop":
        control.stop(run)
    else:
        runs.request(run, command)


def pause(run_id: str | None, watch: Watch) -> list[Any]:
    """Hold the shown run, or let it go on."""
    view = runs.look(runs.find(run_id or ""))
    if view.status != "running":
        raise UserError("This run is not at work.", "Resume it first.")
    runs.pause(view.run, go_on=view.paused)
    return draw(watch, view.run.id)


def begin(run: runs.Run, painter: Painter, watch: Watch) -> list[Any]:
    """Start or resume a run, and show it. The painter gives the device free for it."""
    painter.close()
    runs.start(run)
    return draw(watch, run.id)


def go_on(run_id: str | None, painter: Painter, watch: Watch) -> list[Any]:
    """Resume the shown run."""
    return begin(runs.find(run_id or ""), painter, watch)


def more(run_id: str | None, painter: Painter, watch: Watch) -> list[Any]:
    """Give the shown run, which is finished, half as many steps again."""
    run = runs.find(run_id or "")
    archive.extend(run, extra(runs.look(run)))
    return begin(run, painter, watch)


def again(run_id: str | None, painter: Painter, watch: Watch) -> list[Any]:
    """A new run like the shown one, which failed, with the change that it needs."""
    failed = runs.find(run_id or "")
    change = runs.look(failed).state.change
    if not change:
        raise UserError("Nothing is known that would help this run.", "Look into its log.")
    data = failed.config().model_dump(mode="json", exclude={"record"})
    config = configs.build(configs.override(data, [f"{path}={json.dumps(value)}" for path, value in change.items()]))
    return begin(runs.create(config), painter, watch)
