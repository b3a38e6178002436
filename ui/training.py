"""Tab 2: what to teach, on which base, how long, and start. The live view beside it is in `live`."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import psutil

from trainer import config as configs
from trainer import dataset, files, problems, runs
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.words import count, say
from ui import bases, form, live, memory, presets, progress
from ui.datasets import TYPED_FIRST
from ui.grid import folder_of
from ui.handling import QUIET, handled
from ui.live import Live
from ui.painter import Painter
from ui.watch import Watch

ENTRIES = form.entries()
EXPOSURES, STEPS = ([entry.path for entry in ENTRIES].index(("training", name)) for name in ("exposures", "steps"))
DOUBLE = 3.0  # seconds in which the same start again is the same click
PLANNING = ("steps", "exposures", "batch_size", "accumulation", "resolution")
PRESETS = [(say("Character"), "character"), (say("Style"), "style")]
EFFORTS = {"quick": (say("Quick look"), 0.4), "balanced": (say("Balanced"), 1.0), "thorough": (say("Thorough"), 2.0)}
ROOM = 2 * 2**30  # bytes of the disk below which it is said that there is little


@dataclass(frozen=True)
class Tab:
    """The components that others read or fill.

    `answers` are what `plan`, `settings` and `create` take; `shown` are those that `show` gives values for, `planned`
    those of `plan`.
    """

    trigger: gr.Textbox
    answers: list[Any]
    planned: list[Any]
    shown: list[Any]
    live: Live


def build(project: gr.Dropdown, pill: gr.HTML, painter: Painter, watch: Watch) -> Tab:
    """Draw the tab and connect it."""
    tuned = gr.State(("character", configs.MICRO))  # what the form's unchanged values stand for
    with gr.Row(elem_id="train-columns"):
        with gr.Column(scale=2, min_width=300, elem_id="train-form"):
            preset = gr.Radio(
                PRESETS, value="character", label=say("What are you teaching?"), elem_id="preset", interactive=True
            )
            name = gr.Textbox(
                label=say("Name"), info=say("Of the adapter file."), max_lines=1, elem_id="name", interactive=True
            )
            trigger = gr.Textbox(
                label=say("Trigger word"), info=say("Put in front of each caption that lacks it."), max_lines=1,
                elem_id="train-trigger", interactive=True,
            )  # fmt: skip
            base = _base()
            effort = gr.Radio(
                [(words, key) for key, (words, _) in EFFORTS.items()], value="balanced",
                label=say("How long may it take?"), elem_id="effort", interactive=True,
            )  # fmt: skip
            summary = gr.HTML(elem_id="plan", elem_classes="plan")
            start = gr.Button(say("Start training"), variant="primary", size="lg", elem_id="start")
            with gr.Accordion(say("Advanced"), open=False, elem_id="advanced"):
                kept, use, keep_as, save = _presets()
                widgets = form.widgets(ENTRIES, form.standard("character", configs.MICRO))
        with gr.Column(scale=5, min_width=320, elem_id="train-live"):
            view = Live(pill)
    answers = [project, preset, name, trigger, base, tuned, *widgets]
    settings_of = [preset, base, tuned, *widgets]
    shown = [preset, name, trigger, base, kept, tuned, *widgets, summary, effort]
    tab = Tab(trigger, answers, [summary, effort], shown, view)
    _connect_form(tab, effort, settings_of)
    save.click(handled(keep_preset), [keep_as, *settings_of], [kept, keep_as], **QUIET)
    gr.on([use.click], handled(use_preset), kept, settings_of, **QUIET).then(
        handled(plan), answers, tab.planned, **QUIET
    )

    last: dict[str, tuple[float, str]] = {}  # what was asked for last, when, and which run it became

    def begin(*given: Any) -> list[Any]:  # noqa: ANN401 - values of the form
        asked = repr(given)
        before, run_id = last.get(asked, (-DOUBLE, ""))
        if time.monotonic() - before < DOUBLE:  # a double click, or a request that was sent twice
            return live.draw(watch, run_id)
        run = create(*given)
        drawn = live.begin(run, painter, watch)
        last.clear()
        last[asked] = time.monotonic(), run.id
        return drawn

    start.click(
        handled(begin), answers, view.outputs, js=TYPED_FIRST, trigger_mode="once", concurrency_limit=1, **QUIET
    )
    live.connect(view, painter, watch)
    return tab


def _base() -> gr.Dropdown:
    return gr.Dropdown(
        [], label=say("Base model"), elem_id="base", interactive=True, allow_custom_value=True,
        info=say(
            "Choose one, or write its folder, its .safetensors file, or its name on the hub. Files that lie in the "
            "folder models are listed."
        ),
    )  # fmt: skip


def _presets() -> tuple[gr.Dropdown, gr.Button, gr.Textbox, gr.Button]:
    """Settings under a name of the person's own."""
    with gr.Row(elem_classes="bottom"):
        kept = gr.Dropdown(
            presets.names(), label=say("Settings you kept"), elem_id="kept-settings", interactive=True, scale=3
        )
        use = gr.Button(say("Use"), elem_id="use-settings", scale=1, min_width=80)
    with gr.Row(elem_classes="bottom"):
        name = gr.Textbox(
            label=say("Keep these settings as"), max_lines=1, elem_id="settings-name", interactive=True, scale=3
        )
        save = gr.Button(say("Keep"), elem_id="keep-settings", scale=1, min_width=80)
    return kept, use, name, save


def _connect_form(tab: Tab, effort: gr.Radio, settings_of: list[Any]) -> None:
    project, preset, name, _, base, tuned, *widgets = tab.answers
    for changed in (preset.input, base.input):
        changed(handled(retune), [preset, base, tuned, *widgets], [tuned, *widgets], **QUIET).then(
            handled(plan), tab.answers, tab.planned, **QUIET
        )
    effort.input(handled(exposures), [effort, tuned], [widgets[EXPOSURES], widgets[STEPS]], **QUIET)
    counts = [widget for entry, widget in zip(ENTRIES, widgets, strict=True) if entry.path[-1] in PLANNING]
    gr.on(
        [widget.change for widget in counts], handled(plan), tab.answers, tab.planned, trigger_mode="always_last",
        **QUIET,
    )  # fmt: skip
    for key, widget, event in (("preset", preset, preset.input), ("name", name, name.blur)):
        event(handled(lambda project, value, key=key: keep(project, key, value)), [project, widget], None, **QUIET)
    gr.on(
        [*(widget.input for widget in widgets), effort.input, base.input, preset.input], handled(keep_settings),
        [project, *settings_of], None, trigger_mode="always_last", **QUIET,
    )  # fmt: skip


# Settings -------------------------------------------------------------------------------------------------------


def show(project: str) -> list[Any]:
    """Values of `Tab.shown` for a project: its answers, the settings as they were left, and the plan."""
    preset = memory.answer(project, "preset") if project else "character"
    preset = preset if preset in {key for _, key in PRESETS} else "character"
    name, trigger, base = (memory.answer(project, key) if project else "" for key in ("name", "trigger", "base"))
    base = base or configs.MICRO
    data: dict[str, Any] = {}
    with suppress(ValueError):
        data = json.loads(memory.answer(project, "settings") or "{}") if project else {}
    values = _values(preset, base, data)
    tuned = (preset, base)
    picker = gr.Dropdown(bases.choices(), value=base)
    mine = gr.Dropdown(presets.names(), value=None)
    planned = plan(project, preset, name, trigger, base, tuned, *values)
    return [preset, name, trigger, picker, mine, tuned, *values, *planned]


def _values(preset: str, base: str, data: dict[str, Any]) -> list[Any]:
    """What the widgets show for changes to a preset; the preset alone if they cannot be used any more."""
    standard = form.standard(preset, base)
    with suppress(UserError):
        return form.values(ENTRIES, configs.build(form.as_settings(preset, base) | data))
    return form.values(ENTRIES, standard)


def keep(project: str | None, key: str, value: str) -> None:
    """Remember an answer for the next visit, unless it could not be used."""
    if project and (key != "name" or files.NAME.fullmatch(value)):
        memory.remember(project, key, value)


def keep_settings(project: str | None, preset: str, base: str, tuned: Sequence[str], *values: Any) -> None:  # noqa: ANN401 - values of the form
    """Remember what a person changed in the form, for the next visit of the project."""
    if project:
        memory.remember(project, "base", (base or "").strip() or configs.MICRO)
        memory.remember(project, "settings", json.dumps(form.read(ENTRIES, values, form.standard(*tuned))))


def keep_preset(name: str, preset: str, base: str, tuned: Sequence[str], *values: Any) -> list[Any]:  # noqa: ANN401 - values of the form
    """Keep the form's settings under a name."""
    if not (name or "").strip():
        raise UserError("These settings have no name yet.", "Type one beside Keep.")
    data = form.read(ENTRIES, values, form.standard(*tuned))
    presets.save(name, {"preset": preset, "base": base or configs.MICRO, "settings": data})
    return [gr.Dropdown(presets.names(), value=name.strip()), ""]


def use_preset(name: str | None) -> list[Any]:
    """The form as it was kept under a name: preset, base, what the unchanged values stand for, and the values."""
    if not name:
        raise UserError("No settings are chosen.", "Choose some that you kept.")
    kept = presets.load(name)
    preset, base = str(kept.get("preset", "character")), str(kept.get("base", configs.MICRO))
    if preset not in {key for _, key in PRESETS}:
        raise UserError("The settings {name!r} cannot be used.", "Keep them anew.", name=name)
    return [preset, base, (preset, base), *_values(preset, base, dict(kept.get("settings", {})))]


def retune(preset: str, base: str, tuned: Sequence[str], *values: Any) -> list[Any]:  # noqa: ANN401 - values of the form
    """The form after another preset or base was chosen: what the person changed stays, the rest follows."""
    base = (base or "").strip() or configs.MICRO
    before, after = form.standard(*tuned), form.standard(preset, base)
    return [(preset, base), *form.retuned(ENTRIES, values, before, after)]


def exposures(effort: str, tuned: Sequence[str]) -> list[Any]:
    """How often the pictures are seen, and no fixed number of steps, for what a person has time for."""
    standard = form.standard(*tuned).training.exposures
    return [round(standard * EFFORTS[effort][1]) if effort in EFFORTS else standard, 0]


def settings(*given: Any) -> TrainConfig:  # noqa: ANN401 - values of the form
    """The full config that the form asks for.

    Raises:
        UserError: something in it cannot be used; it is named.
    """
    project, preset, name, trigger, base, tuned, *values = given
    data = form.read(ENTRIES, values, form.standard(*tuned))
    data.setdefault("model", {})["base"] = (base or "").strip() or configs.MICRO
    data |= {
        "name": (name or "").strip(), "dataset": project, "preset": preset, "trigger": dataset.one_line(trigger or ""),
    }  # fmt: skip
    return form.build(ENTRIES, data)


def plan(*given: Any) -> list[Any]:  # noqa: ANN401 - values of the form
    """Values of `Tab.planned`: what a start would do, in a few sentences, and what each effort takes here."""
    project = given[0]
    if not project:
        return [say("Make a project and add pictures first."), gr.skip()]
    folder = files.datasets() / project
    pictures = len(dataset.read(folder)) if files.NAME.fullmatch(project) and folder.is_dir() else 0
    if not pictures:
        return [say("There are no pictures in this project yet. Add some in the first tab."), gr.skip()]
    try:
        config = settings(*given[:2], given[2] or "x", *given[3:])
    except UserError as error:
        return [escape(str(error)), gr.skip()]
    before = runs.alike(config)
    pace = before.seconds_per_step if before else None
    return [_summary(config, pictures, before), _efforts(config, pictures, form.standard(*given[5]), pace)]


def _summary(config: TrainConfig, pictures: int, before: runs.View | None) -> str:
    training = config.training
    steps = configs.planned_steps(training, pictures)
    times = round(steps * training.batch_size * training.accumulation / pictures)
    if before and before.seconds_per_step:
        facts = [
            count(
                "<b>{n} picture, {steps} steps</b>: each picture is seen about {times} times, about {time} here.",
                "<b>{n} pictures, {steps} steps</b>: each picture is seen about {times} times, about {time} here.",
                pictures, steps=steps, times=times, time=progress.seconds(before.seconds_per_step * steps),
            ),
            _memory(before),
        ]  # fmt: skip
    else:
        facts = [
            count(
                "<b>{n} picture, {steps} steps</b>: each picture is seen about {times} times.",
                "<b>{n} pictures, {steps} steps</b>: each picture is seen about {times} times.",
                pictures, steps=steps, times=times,
            ),
            say("How long it takes is known after the first steps."),
        ]  # fmt: skip
    free = files.free_space(files.outputs())
    room = say("{room:.0f} GB of the disk are free.", room=free / 2**30)
    if free < ROOM:
        room = say("{room:.0f} GB of the disk are free, which is little.", room=free / 2**30)
    return " ".join([*facts, room])


def _memory(before: runs.View) -> str:
    """The memory that the run before took, and what of it is free here; of a GPU's the page knows nothing."""
    took = before.state.memory / 2**30
    if before.state.device != "CPU":
        return say("It took {memory:.1f} GB of memory the last time.", memory=took)
    free = psutil.virtual_memory().available / 2**30
    return say("It took {memory:.1f} GB of memory the last time; {free:.0f} GB are free.", memory=took, free=free)


def _efforts(config: TrainConfig, pictures: int, standard: TrainConfig, pace: float | None) -> Any:  # noqa: ANN401 - a component's update
    """The choice of how long, each with its time where that is known, and which of them the form stands for."""
    labels, chosen = [], None
    for key, (words, factor) in EFFORTS.items():
        seen = round(standard.training.exposures * factor)
        training = config.training.model_copy(update={"exposures": seen, "steps": 0})
        took = progress.seconds(pace * configs.planned_steps(training, pictures)) if pace else ""
        labels.append((say("{effort}, about {time}", effort=words, time=took) if took else words, key))
        if config.training.steps == 0 and config.training.exposures == seen:
            chosen = key
    return gr.Radio(labels, value=chosen)


def create(*given: Any) -> runs.Run:  # noqa: ANN401 - values of the form
    """A new run from the form as it stands.

    Raises:
        UserError: a setting or the data set cannot be used.
    """
    project = given[0]
    folder = folder_of(project)
    fatal = next((one for one in problems.find(folder) if one.fatal), None)
    if fatal:
        raise UserError(fatal.message, fatal.remedy)
    config = settings(*given[:2], (given[2] or "").strip() or project, *given[3:])
    for key, value in (("preset", config.preset), ("name", config.name), ("trigger", config.trigger)):
        memory.remember(project, key, value)
    keep_settings(project, given[1], *given[4:])
    return runs.create(config)
