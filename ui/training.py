"""Tab 2: what to teach, start, and the live view of a run. The run folder is the only state."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from trainer import config as configs
from trainer import dataset, files, runs
from trainer.config import TrainConfig
from trainer.errors import UserError
from ui import form, memory, progress
from ui.datasets import TYPED_FIRST, folder_of
from ui.handling import QUIET, handled
from ui.painter import Painter
from ui.watch import Watch, label, log_tail, stamp

ENTRIES = form.entries()
BASE = [entry.path for entry in ENTRIES].index(("model", "base"))
DOUBLE = 3.0  # seconds in which the same start again is the same click
PLANNING = ("steps", "exposures", "batch_size", "accumulation")
PRESETS = [("Character", "character"), ("Style", "style")]


@dataclass(frozen=True)
class Tab:
    """The components that others read or fill.

    `shown` are the answers that `show` gives values for, `live` what `draw` and `tick` give values for.
    """

    trigger: gr.Textbox
    summary: gr.HTML
    picker: gr.Dropdown
    seen: gr.State
    answers: list[Any]
    shown: list[Any]
    live: list[Any]


def build(project: gr.Dropdown, pill: gr.HTML, painter: Painter, watch: Watch) -> Tab:
    """Draw the tab and connect it."""
    first = form.standard("character", configs.MICRO)
    tuned = gr.State(("character", configs.MICRO))  # what the form's unchanged values stand for
    seen = gr.State(())
    with gr.Row(elem_id="train-columns"):
        with gr.Column(scale=2, min_width=300, elem_id="train-form"):
            preset = gr.Radio(
                PRESETS, value="character", label="What are you teaching?", elem_id="preset", interactive=True
            )
            name = gr.Textbox(label="Name", info="Of the adapter file.", max_lines=1, elem_id="name", interactive=True)
            trigger = gr.Textbox(
                label="Trigger word", info="Put in front of each caption that lacks it.", max_lines=1,
                elem_id="train-trigger", interactive=True,
            )  # fmt: skip
            summary = gr.HTML(elem_id="plan", elem_classes="plan")
            start = gr.Button("Start training", variant="primary", size="lg", elem_id="start")
            with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                widgets = form.widgets(ENTRIES, first)
        with gr.Column(scale=5, min_width=320, elem_id="train-live"):
            picker = gr.Dropdown([], label="Run", elem_id="run", interactive=True, container=False, elem_classes="run")
            live, stop, resume, save, look = _live_view()
    answers = [project, preset, name, trigger, tuned, *widgets]
    tab = Tab(
        trigger, summary, picker, seen, answers, [preset, name, trigger, tuned, *widgets, summary],
        [pill, picker, seen, *live, stop, resume, save, look],
    )  # fmt: skip
    _connect_form(tab, widgets, tuned, preset)
    _connect_run(tab, start, painter, watch)
    stop.click(handled(lambda run: ask(run, "stop")), picker, None, **QUIET)
    save.click(handled(lambda run: ask(run, "checkpoint")), picker, None, **QUIET)
    look.click(handled(lambda run: ask(run, "preview")), picker, None, **QUIET)
    resume.click(handled(lambda run: go_on(run, painter, watch)), picker, tab.live, **QUIET)
    return tab


def _live_view() -> tuple[list[Any], gr.Button, gr.Button, gr.Button, gr.Button]:
    status = gr.HTML("<div class='empty'>Nothing has been trained yet.</div>", elem_id="status")
    with gr.Row(elem_classes="tools"):
        stop = gr.Button("Stop and save", variant="stop", size="sm", visible=False, elem_id="stop")
        resume = gr.Button("Resume", variant="primary", size="sm", visible=False, elem_id="resume")
        save = gr.Button("Save now", size="sm", visible=False, elem_id="save-now")
        look = gr.Button("Preview now", size="sm", visible=False, elem_id="preview-now")
    chart = gr.HTML(elem_id="chart")
    previews = gr.HTML(elem_id="previews")
    notes = gr.HTML(elem_id="notes")
    with gr.Accordion("Log", open=False, elem_id="log"):
        log = gr.Textbox(
            lines=12, max_lines=12, show_label=False, interactive=False, elem_id="log-text", buttons=["copy"]
        )
    return [status, chart, previews, notes, log], stop, resume, save, look


def _connect_form(tab: Tab, widgets: list[Any], tuned: gr.State, preset: gr.Radio) -> None:
    base = widgets[BASE]
    for changed in (preset.input, base.blur, base.submit):
        changed(handled(retune), [preset, tuned, *widgets], [tuned, *widgets], **QUIET).then(
            handled(plan), tab.answers, tab.summary, **QUIET
        )
    counts = [widget for entry, widget in zip(ENTRIES, widgets, strict=True) if entry.path[-1] in PLANNING]
    gr.on(
        [widget.change for widget in counts],
        handled(plan),
        tab.answers,
        tab.summary,
        trigger_mode="always_last",
        **QUIET,
    )
    project, name = tab.answers[0], tab.shown[1]
    for key, widget, event in (("preset", preset, preset.input), ("name", name, name.blur)):
        event(handled(lambda project, value, key=key: keep(project, key, value)), [project, widget], None, **QUIET)


def _connect_run(tab: Tab, start: gr.Button, painter: Painter, watch: Watch) -> None:
    last: dict[str, tuple[float, str]] = {}  # what was asked for last, when, and which run it became

    def begin(*given: Any) -> list[Any]:  # noqa: ANN401 - values of the form
        asked = repr(given)
        before, run_id = last.get(asked, (-DOUBLE, ""))
        if time.monotonic() - before < DOUBLE:  # a double click, or a request that was sent twice
            return draw(watch, run_id)
        run = create(*given)
        painter.close()
        runs.start(run)
        last.clear()
        last[asked] = time.monotonic(), run.id
        return draw(watch, run.id)

    start.click(
        handled(begin), tab.answers, tab.live, js=TYPED_FIRST, trigger_mode="once", concurrency_limit=1, **QUIET
    )
    tab.picker.input(handled(lambda run: draw(watch, run)), tab.picker, tab.live, **QUIET)
    timer = gr.Timer(1)
    timer.tick(
        handled(lambda run, seen: tick(watch, run, seen)), [tab.picker, tab.seen], tab.live, queue=False, **QUIET
    )  # fmt: skip


# Settings -------------------------------------------------------------------------------------------------------


def show(project: str) -> list[Any]:
    """Values of `Tab.shown` for a project: its answers, the standard settings, and the plan."""
    preset = memory.answer(project, "preset") if project else "character"
    preset = preset if preset in {key for _, key in PRESETS} else "character"
    name, trigger = (memory.answer(project, key) if project else "" for key in ("name", "trigger"))
    values = form.values(ENTRIES, form.standard(preset, configs.MICRO))
    tuned = (preset, configs.MICRO)
    return [preset, name, trigger, tuned, *values, plan(project, preset, name, trigger, tuned, *values)]


def keep(project: str | None, key: str, value: str) -> None:
    """Remember an answer for the next visit, unless it could not be used."""
    if project and (key != "name" or files.NAME.fullmatch(value)):
        memory.remember(project, key, value)


def retune(preset: str, tuned: Sequence[str], *values: Any) -> list[Any]:  # noqa: ANN401 - values of the form
    """The form after another preset or base was chosen: what the person changed stays, the rest follows."""
    base = str(values[BASE] or configs.MICRO).strip()
    before, after = form.standard(*tuned), form.standard(preset, base)
    return [(preset, base), *form.retuned(ENTRIES, values, before, after)]


def settings(*given: Any) -> TrainConfig:  # noqa: ANN401 - values of the form
    """The full config that the form asks for.

    Raises:
        UserError: something in it cannot be used; it is named.
    """
    project, preset, name, trigger, tuned, *values = given
    data = form.read(ENTRIES, values, form.standard(*tuned))
    data.setdefault("model", {})["base"] = str(values[BASE] or "").strip() or configs.MICRO
    data |= {
        "name": (name or "").strip(),
        "dataset": project,
        "preset": preset,
        "trigger": dataset.one_line(trigger or ""),
    }
    return form.build(ENTRIES, data)


def plan(*given: Any) -> str:  # noqa: ANN401 - values of the form
    """What a start would do, in a sentence."""
    project = given[0]
    if not project:
        return "Make a project and add pictures first."
    folder = files.datasets() / project
    count = len(dataset.read(folder)) if folder.is_dir() else 0
    if not count:
        return "There are no pictures in this project yet. Add some in the first tab."
    try:
        config = settings(*given[:2], given[2] or "x", *given[3:])
    except UserError as error:
        return str(error)
    training = config.training
    steps = configs.planned_steps(training, count)
    times = round(steps * training.batch_size * training.accumulation / count)
    pictures = f"{count} picture" + ("" if count == 1 else "s")
    pace = runs.seconds_per_step(config)
    took = f", about {progress.seconds(pace * steps)} here" if pace else ""
    return f"<b>{pictures}, {steps} steps</b>: each picture is seen about {times} times{took}."


def create(*given: Any) -> runs.Run:  # noqa: ANN401 - values of the form
    """A new run from the form as it stands.

    Raises:
        UserError: a setting or the data set cannot be used.
    """
    project = given[0]
    folder = folder_of(project)
    fatal = next((one for one in dataset.problems(folder) if one.fatal), None)
    if fatal:
        raise UserError(fatal.message, fatal.remedy)
    if not (given[2] or "").strip():
        raise UserError("The adapter has no name yet.", "Give it one.")
    config = settings(*given)
    for key, value in (("preset", config.preset), ("name", config.name), ("trigger", config.trigger)):
        memory.remember(project, key, value)
    return runs.create(config)


# The live view --------------------------------------------------------------------------------------------------


def draw(watch: Watch, run_id: str | None) -> list[Any]:
    """Values of `Tab.live` for a run, whatever was shown before."""
    return tick(watch, run_id, None)


def tick(watch: Watch, run_id: str | None, seen: Any) -> list[Any] | Any:  # noqa: ANN401 - what was drawn last
    """Values of `Tab.live`, or nothing at all if the page shows the present already."""
    known = [run.id for run in runs.every()]
    before = seen[0] if seen else known
    view, active = watch.find(run_id), watch.active()
    if view is None or (view.status not in runs.ACTIVE and active and active.run.id not in before):
        view = watch.find(watch.default())  # another page started a run
    now = (known, stamp(view), stamp(active))
    if seen and now == tuple(seen):
        return gr.skip()
    choices = [(label(run), run.id) for run in runs.every()]
    chosen = view.run.id if view else None
    unchanged = seen is not None and bool(seen) and seen[0] == known and chosen == run_id
    picker = gr.skip() if unchanged else gr.Dropdown(choices, value=chosen, visible=bool(choices))
    return [progress.pill(active), picker, now, *_drawn(view)]


def _drawn(view: runs.View | None) -> list[Any]:
    if view is None:
        empty = "<div class='empty'>The loss curve and preview pictures appear here once training starts.</div>"
        return [empty, "", "", "", "", *(gr.Button(visible=False) for _ in range(4))]
    active, running = view.status in runs.ACTIVE, view.status == "running"
    return [
        progress.status(view),
        progress.chart(view.state),
        progress.previews(view),
        progress.warnings(view.state),
        log_tail(view.run),
        gr.Button(visible=active),
        gr.Button(visible=view.status in ("stopped", "interrupted", "failed")),
        gr.Button(visible=running),
        gr.Button(visible=running),
    ]


def ask(run_id: str | None, command: runs.Command) -> None:
    """Ask the shown run for something; it answers after its present step."""
    run = runs.find(run_id or "")
    view = runs.look(run)
    if view.status not in runs.ACTIVE:
        raise UserError("This run is not at work.", "Resume it first.")
    if command == "stop" and view.is_silent(time.time()):
        return runs.kill(run)
    return runs.ask(run, command)


def go_on(run_id: str | None, painter: Painter, watch: Watch) -> list[Any]:
    """Resume the shown run."""
    run = runs.find(run_id or "")
    painter.close()
    runs.start(run)
    return draw(watch, run.id)
