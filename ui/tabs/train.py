"""Tab 2: what to teach, on which base, how long, and start. The live view beside it is in `live`."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import gradio as gr

from trainer import paths, runs
from trainer.base_models import MICRO
from trainer.config import TrainConfig
from trainer.data import checks
from trainer.errors import UserError
from trainer.i18n import say
from ui.state import base_model_choices, page_memory, saved_settings
from ui.state.answers import ENTRIES, Answers, settings
from ui.state.run_watcher import Watch
from ui.state.sampler_client import Painter
from ui.tabs import run_view
from ui.tabs.image_grid import folder_of
from ui.tabs.images import TYPED_FIRST
from ui.tabs.plan import EFFORTS, plan
from ui.tabs.run_view import Live
from ui.widgets import settings_form
from ui.widgets.handlers import QUIET, handled
from ui.widgets.templates import read

EXPOSURES, STEPS = ([entry.path for entry in ENTRIES].index(("training", name)) for name in ("exposures", "steps"))
DOUBLE = 3.0  # seconds in which the same start again is the same click
TEXT_ENCODER = ("training", "text_encoder")  # drawn beside the basic questions
PLANNING = ("steps", "exposures", "batch_size", "accumulation", "resolution")
NO_TRIGGER = say(
    "There is no trigger word. Without one nothing calls what you teach: every picture of the base changes. Type one "
    "above, such as miraxo."
)
PRESETS = [(say("Character"), "character"), (say("Style"), "style")]


@dataclass(frozen=True)
class Tab:
    """The components that others read or fill.

    `answers` are what `Answers.of` takes; `shown` are those that `show` gives values for, `planned`
    those of `plan`.
    """

    trigger: gr.Textbox
    answers: list[Any]
    planned: list[Any]
    shown: list[Any]
    live: Live


def build(project: gr.Dropdown, pill: gr.HTML, painter: Painter, watch: Watch) -> Tab:
    """Draw the tab and connect it."""
    filled = gr.JSON(asdict(settings_form.fill(ENTRIES, "character", MICRO, {})), visible=False)
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
            apart = settings_form.widget(ENTRIES, TEXT_ENCODER, settings_form.standard("character", MICRO))
            summary = gr.HTML(elem_id="plan", elem_classes="plan")
            start = gr.Button(say("Start training"), variant="primary", size="lg", elem_id="start")
            with gr.Column(visible=False, elem_id="no-trigger") as no_trigger:
                gr.HTML(f"<p role='alert'>{NO_TRIGGER}</p>")
                without = gr.Button(say("Train without a trigger word"), elem_id="without-trigger")
            conflicts = gr.HTML({}, html_template="<span></span>", js_on_load=read("conflicts.js"), elem_id="conflicts")
            with gr.Accordion(say("Advanced"), open=False, elem_id="advanced"):
                kept, use, keep_as, save = _presets()
                widgets = settings_form.widgets(ENTRIES, settings_form.standard("character", MICRO), apart)
        with gr.Column(scale=5, min_width=320, elem_id="train-live"):
            view = Live(pill)
    answers = [project, preset, name, trigger, base, filled, *widgets]
    shown = [preset, name, trigger, base, kept, filled, *widgets, summary, effort, conflicts]
    tab = Tab(trigger, answers, [summary, effort, conflicts], shown, view)
    _connect_form(tab, effort)
    save.click(handled(keep_preset), [keep_as, *answers], [kept, keep_as], **QUIET)
    gr.on([use.click], handled(use_preset), kept, [preset, base, filled, *widgets], **QUIET).then(
        handled(plan), answers, tab.planned, **QUIET
    )

    _connect_start(tab, start, no_trigger, without, painter, watch)
    run_view.connect(view, painter, watch)
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
            saved_settings.names(), label=say("Settings you kept"), elem_id="kept-settings", interactive=True, scale=3
        )
        use = gr.Button(say("Use"), elem_id="use-settings", scale=1, min_width=80)
    with gr.Row(elem_classes="bottom"):
        name = gr.Textbox(
            label=say("Keep these settings as"), max_lines=1, elem_id="settings-name", interactive=True, scale=3
        )
        save = gr.Button(say("Keep"), elem_id="keep-settings", scale=1, min_width=80)
    return kept, use, name, save


def _connect_form(tab: Tab, effort: gr.Radio) -> None:
    project, preset, name, _, base, filled, *widgets = tab.answers
    for changed in (preset.input, base.input):
        changed(handled(refill), tab.answers, [filled, *widgets], **QUIET).then(
            handled(plan), tab.answers, tab.planned, **QUIET
        )
    effort.input(handled(exposures), [effort, preset, base], [widgets[EXPOSURES], widgets[STEPS]], **QUIET)
    # All kinds are asked for in a conflict, and numbers in a plan.
    watched = [
        widget for entry, widget in zip(ENTRIES, widgets, strict=True)
        if entry.path[-1] in PLANNING or entry.kind in ("choice", "flag")
    ]  # fmt: skip
    gr.on(
        [widget.change for widget in watched], handled(plan), tab.answers, tab.planned, trigger_mode="always_last",
        **QUIET,
    )  # fmt: skip
    for key, widget, event in (("preset", preset, preset.input), ("name", name, name.blur)):
        event(handled(lambda project, value, key=key: keep(project, key, value)), [project, widget], None, **QUIET)
    gr.on(
        [*(widget.input for widget in widgets), effort.input, base.input, preset.input], handled(keep_settings),
        tab.answers, None, trigger_mode="always_last", **QUIET,
    )  # fmt: skip


def _connect_start(
    tab: Tab, start: gr.Button, no_trigger: gr.Column, without: gr.Button, painter: Painter, watch: Watch
) -> None:
    """Start a run at a click; without a trigger word, ask once whether that is meant."""
    last: dict[str, tuple[float, str]] = {}  # what was asked for last, when, and which run it became

    def begin(*given: Any) -> list[Any]:  # noqa: ANN401 - values of the form
        key = repr(given)
        before, run_id = last.get(key, (-DOUBLE, ""))
        if time.monotonic() - before < DOUBLE:  # a double click, or a request that was sent twice
            return [gr.skip(), *run_view.draw(watch, run_id)]
        form_as_it_stands = Answers.of(*given)
        ready(form_as_it_stands)
        if asks_for_trigger(form_as_it_stands):
            return [gr.Column(visible=True), *(gr.skip() for _ in tab.live.outputs)]
        run = create(form_as_it_stands)
        drawn = run_view.begin(run, painter, watch)
        last.clear()
        last[key] = time.monotonic(), run.id
        return [gr.Column(visible=False), *drawn]

    def begin_without(*given: Any) -> list[Any]:  # noqa: ANN401 - values of the form
        page_memory.remember(Answers.of(*given).project, "without-trigger", "yes")
        return begin(*given)

    for button, handler in ((start, begin), (without, begin_without)):
        button.click(
            handled(handler), tab.answers, [no_trigger, *tab.live.outputs], js=TYPED_FIRST, trigger_mode="once",
            concurrency_limit=1, **QUIET,
        )  # fmt: skip
    tab.trigger.input(lambda: gr.Column(visible=False), None, no_trigger, **QUIET)


# Settings -------------------------------------------------------------------------------------------------------


def show(project: str) -> list[Any]:
    """Values of `Tab.shown` for a project: its answers, the settings as they were left, and the plan."""
    preset = page_memory.answer(project, "preset") if project else "character"
    preset = preset if preset in {key for _, key in PRESETS} else "character"
    name, trigger, base = (page_memory.answer(project, key) if project else "" for key in ("name", "trigger", "base"))
    base = base or MICRO
    data: dict[str, Any] = {}
    with suppress(ValueError):
        data = json.loads(page_memory.answer(project, "settings") or "{}") if project else {}
    filled = settings_form.fill(ENTRIES, preset, base, settings_form.own_of(ENTRIES, data))
    picker = gr.Dropdown(base_model_choices.choices(), value=base, allow_custom_value=True)
    mine = gr.Dropdown(saved_settings.names(), value=None)
    planned = plan(project, preset, name, trigger, base, asdict(filled), *filled.values)
    return [preset, name, trigger, picker, mine, asdict(filled), *filled.values, *planned]


def keep(project: str | None, key: str, value: str) -> None:
    """Remember an answer for the next visit, unless it could not be used."""
    if project and (key != "name" or paths.NAME.fullmatch(value)):
        page_memory.remember(project, key, value)


def keep_settings(*given: Any) -> None:  # noqa: ANN401 - values of the form
    """Remember what a person changed in the form, for the next visit of the project."""
    answers = Answers.of(*given)
    if answers.project:
        page_memory.remember(answers.project, "base", answers.base)
        page_memory.remember(answers.project, "settings", json.dumps(answers.settings()))


def keep_preset(name: str, *given: Any) -> list[Any]:  # noqa: ANN401 - values of the form
    """Keep the form's settings under a name."""
    if not (name or "").strip():
        raise UserError("These settings have no name yet.", "Type one beside Keep.")
    answers = Answers.of(*given)
    saved_settings.save(name, {"preset": answers.preset, "base": answers.base, "settings": answers.settings()})
    return [gr.Dropdown(saved_settings.names(), value=name.strip()), ""]


def use_preset(name: str | None) -> list[Any]:
    """The form as it was kept under a name: preset, base, what it is filled from, and the values."""
    if not name:
        raise UserError("No settings are chosen.", "Choose some that you kept.")
    kept = saved_settings.load(name)
    preset, base = str(kept.get("preset", "character")), str(kept.get("base", MICRO))
    if preset not in {key for _, key in PRESETS}:
        raise UserError("The settings {name!r} cannot be used.", "Keep them anew.", name=name)
    filled = settings_form.fill(ENTRIES, preset, base, settings_form.own_of(ENTRIES, dict(kept.get("settings", {}))))
    return [preset, base, asdict(filled), *filled.values]


def refill(*given: Any) -> list[Any]:  # noqa: ANN401 - values of the form
    """The form after another preset or base was chosen: what the person changed stays, the rest follows."""
    answers = Answers.of(*given)
    filled = settings_form.fill(ENTRIES, answers.preset, answers.base, answers.own)
    return [asdict(filled), *filled.values]


def exposures(effort: str, preset: str, base: str | None) -> list[Any]:
    """Return the settings of an effort: how often the images are seen, instead of a fixed number of steps."""
    standard = settings_form.standard(preset, (base or "").strip()).training.exposures
    return [round(standard * EFFORTS[effort][1]) if effort in EFFORTS else standard, 0]


def asks_for_trigger(answers: Answers) -> bool:
    """Tell whether a start is to be held up once, because nothing would call what is taught."""
    return bool(answers.project) and not answers.trigger and not page_memory.answer(answers.project, "without-trigger")


def ready(answers: Answers) -> TrainConfig:
    """Return the settings of a start.

    Raises:
        UserError: a setting or the data set cannot be used.
    """
    folder = folder_of(answers.project)
    fatal = next((problem for problem in checks.find(folder) if problem.fatal), None)
    if fatal:
        raise UserError(fatal.message, fatal.remedy)
    return settings(replace(answers, name=answers.name or answers.project))


def create(answers: Answers) -> runs.Run:
    """A new run from the form as it stands.

    Raises:
        UserError: a setting or the data set cannot be used.
    """
    config = ready(answers)
    for key, value in (("preset", config.preset), ("name", config.name), ("trigger", config.trigger)):
        page_memory.remember(answers.project, key, value)
    page_memory.remember(answers.project, "base", answers.base)
    page_memory.remember(answers.project, "settings", json.dumps(answers.settings()))
    return runs.create(config)
