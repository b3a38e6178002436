"""Train tab: what to teach, on which base model, for how long, and the start. The run view beside it is `run_view`."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import gradio as gr

from trainer import paths
from trainer.base_models import MICRO
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run
from ui.state import page_memory, run_actions, saved_settings
from ui.state.answers import ENTRIES, Answers, checked_config, create_run, with_answers, with_answers_and_event
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import base_model, run_view
from ui.tabs.base_model import BaseModel
from ui.tabs.images import TYPED_FIRST
from ui.tabs.plan import EFFORTS, plan
from ui.tabs.run_view import RunView
from ui.widgets import settings_form
from ui.widgets.handlers import QUIET, Handler, handled
from ui.widgets.templates import read

_PATHS = [entry.path for entry in ENTRIES]
EXPOSURES, STEPS, VAE = map(_PATHS.index, [("training", "exposures"), ("training", "steps"), ("model", "vae")])
DOUBLE_CLICK = 3.0  # seconds within which an equal request to start is the same click
TEXT_ENCODER = ("training", "text_encoder")  # drawn beside the basic questions
PLANNING = ("steps", "exposures", "batch_size", "gradient_accumulation", "resolution")
NO_TRIGGER = _(
    "There is no trigger word. Without one, nothing calls up what you teach: every image of the base model changes. "
    "Type one above, such as miraxo."
)
PRESETS = [(_("Character"), "character"), (_("Style"), "style")]


@dataclass(frozen=True)
class Tab:
    """The components that other parts of the page read or fill.

    `form` are the inputs of `Answers.from_form`; `show` returns values for `outputs`, `plan` those for `planned`.
    """

    trigger: gr.Textbox
    form: list[Any]
    planned: list[Any]
    outputs: list[Any]
    view: RunView


def build(project: gr.Dropdown, pill: gr.HTML, sampler: SamplerClient, watch: RunWatcher) -> Tab:
    """Draw the tab and connect it."""
    filled = gr.JSON(asdict(settings_form.fill(ENTRIES, "character", MICRO, {})), visible=False)
    standard = settings_form.standard("character", MICRO)
    with gr.Row(elem_id="train-columns"):
        with gr.Column(scale=2, min_width=300, elem_id="train-form"):
            preset, name, trigger, model, effort = _questions()
            text_encoder = settings_form.widget(ENTRIES, TEXT_ENCODER, standard)
            summary = gr.HTML(elem_id="plan", elem_classes="plan")
            start = gr.Button(_("Start training"), variant="primary", size="lg", elem_id="start")
            with gr.Column(visible=False, elem_id="no-trigger") as no_trigger:
                gr.HTML(f"<p role='alert'>{NO_TRIGGER}</p>")
                without = gr.Button(_("Train without a trigger word"), elem_id="without-trigger")
            notes = gr.HTML({}, html_template="<span></span>", js_on_load=read("form_notes.js"), elem_id="form-notes")
            with gr.Accordion(_("Advanced"), open=False, elem_id="advanced"):
                saved, use, save_as, save = _saved_settings()
                reset_all = gr.Button(_("Reset all settings"), elem_id="reset-settings", size="sm")
                widgets = settings_form.widgets(ENTRIES, standard, text_encoder)
        with gr.Column(scale=5, min_width=320, elem_id="train-live"):
            view = RunView(pill)
    base = model.field
    form = [project, preset, name, trigger, base, filled, *widgets]
    planned = [summary, effort, notes]
    described = [*model.described, start]
    outputs = [preset, name, trigger, base, model.folders, *described, saved, filled, *widgets, *planned]
    tab = Tab(trigger, form, planned, outputs, view)
    base_model.connect(model, widgets[VAE], start)
    _connect_form(tab, effort)
    _connect_refill(tab, notes.apply, with_answers_and_event(fix_conflict))
    _connect_refill(tab, notes.undo, with_answers_and_event(reset))
    _connect_refill(tab, reset_all.click, with_answers(reset_all_settings))
    save.click(with_answers(save_settings), [*form, save_as], [saved, save_as], **QUIET)
    loaded = gr.on([use.click], handled(load_settings), saved, [preset, base, filled, *widgets], **QUIET)
    loaded.then(with_answers(plan), form, planned, **QUIET)
    loaded.then(handled(base_model.describe), [base, widgets[VAE]], described, **QUIET)
    _connect_refill(tab, model.downloaded.change, with_answers(refill))
    _connect_start(tab, start, no_trigger, without, sampler, watch)
    run_view.connect(view, sampler, watch)
    return tab


def _questions() -> tuple[gr.Radio, gr.Textbox, gr.Textbox, BaseModel, gr.Radio]:
    preset = gr.Radio(PRESETS, value="character", label=_("What are you teaching?"), elem_id="preset", interactive=True)
    name = gr.Textbox(
        label=_("Name"), info=_("Name of the adapter file."), max_lines=1, elem_id="name", interactive=True
    )
    trigger = gr.Textbox(
        label=_("Trigger word"),
        info=_("Added to the front of each caption that lacks it."),
        max_lines=1,
        elem_id="train-trigger",
        interactive=True,
    )
    model = base_model.build()
    efforts = [(title, key) for key, (title, _unused) in EFFORTS.items()]
    effort = gr.Radio(
        efforts, value="balanced", label=_("How long should it train?"), elem_id="effort", interactive=True
    )
    return preset, name, trigger, model, effort


def _saved_settings() -> tuple[gr.Dropdown, gr.Button, gr.Textbox, gr.Button]:
    """Draw the fields that save the settings under a name and load them again."""
    with gr.Row(elem_classes="bottom"):
        saved = gr.Dropdown(
            saved_settings.names(), label=_("Saved settings"), elem_id="kept-settings", interactive=True, scale=3
        )
        use = gr.Button(_("Use"), elem_id="use-settings", scale=1, min_width=80)
    with gr.Row(elem_classes="bottom"):
        name = gr.Textbox(
            label=_("Save these settings as"), max_lines=1, elem_id="settings-name", interactive=True, scale=3
        )
        save = gr.Button(_("Save"), elem_id="keep-settings", scale=1, min_width=80)
    return saved, use, name, save


def _connect_form(tab: Tab, effort: gr.Radio) -> None:
    project, preset, name, _trigger, base, _filled, *widgets = tab.form
    for picked in (preset.input, base.input):
        _connect_refill(tab, picked, with_answers(refill))
    effort.input(handled(exposures), [effort, preset, base], [widgets[EXPOSURES], widgets[STEPS]], **QUIET)
    # Choices and flags can conflict with each other; the numbers decide how long it takes.
    changes = [
        widget.change
        for entry, widget in zip(ENTRIES, widgets, strict=True)
        if entry.path[-1] in PLANNING or entry.kind in ("choice", "flag")
    ]
    gr.on(changes, with_answers(plan), tab.form, tab.planned, trigger_mode="always_last", **QUIET)
    for key, widget, event in (("preset", preset, preset.input), ("name", name, name.blur)):
        event(handled(lambda project, value, key=key: remember(project, key, value)), [project, widget], None, **QUIET)
    inputs = [*(widget.input for widget in widgets), effort.input, base.input, preset.input]
    gr.on(inputs, with_answers(remember_settings), tab.form, tab.planned[-1], trigger_mode="always_last", **QUIET)


def _connect_refill(tab: Tab, event: Any, handler: Handler) -> None:  # noqa: ANN401 - of gradio, which is untyped
    """Fill the form anew on an event, then plan with what it holds."""
    _project, _preset, _name, _trigger, _base, *filled = tab.form
    event(handler, tab.form, filled, **QUIET).then(with_answers(plan), tab.form, tab.planned, **QUIET)


def _connect_start(
    tab: Tab, start: gr.Button, no_trigger: gr.Column, without: gr.Button, sampler: SamplerClient, watch: RunWatcher
) -> None:
    """Start a run on a click; without a trigger word, ask once whether that is intended."""
    latest: dict[str, tuple[float, str]] = {}  # the latest request, its time, and the run that it started

    def begin(answers: Answers) -> list[Any]:
        key = repr(answers)
        before, run_id = latest.get(key, (-DOUBLE_CLICK, ""))
        if time.monotonic() - before < DOUBLE_CLICK:  # a double click, or a request that was sent twice
            return [gr.skip(), *run_view.draw(watch, run_id)]
        if asks_for_trigger(answers):
            checked_config(answers.project, answers.data())
            return [gr.Column(visible=True), *(gr.skip() for _ in tab.view.outputs)]
        run = run_actions.start(create(answers), sampler)
        latest.clear()
        latest[key] = time.monotonic(), run.id
        return [gr.Column(visible=False), *run_view.draw(watch, run.id)]

    def begin_without(answers: Answers) -> list[Any]:
        page_memory.remember(answers.project, "without-trigger", "yes")
        return begin(answers)

    for button, handler in ((start, begin), (without, begin_without)):
        button.click(
            with_answers(handler),
            tab.form,
            [no_trigger, *tab.view.outputs],
            js=TYPED_FIRST,
            trigger_mode="once",
            concurrency_limit=1,
            **QUIET,
        )
    tab.trigger.input(lambda: gr.Column(visible=False), None, no_trigger, **QUIET)


# Handlers -------------------------------------------------------------------------------------------------------


def show(project: str) -> list[Any]:
    """Return values of `Tab.outputs` for a project: its answers, the settings as they were left, and the plan."""
    preset, name, trigger, base = "character", "", "", ""
    data: dict[str, Any] = {}
    if project:
        preset, name, trigger, base = (
            page_memory.answer(project, key) for key in ("preset", "name", "trigger", "base")
        )
        with suppress(ValueError):
            data = json.loads(page_memory.answer(project, "settings") or "{}")
    if not _is_preset(preset):
        preset = "character"
    answers = Answers(project, preset, name, trigger, base or MICRO, settings_form.own_of(ENTRIES, data))
    description = base_model.describe(answers.base, answers.own.get(ENTRIES[VAE].id))
    about_base = [base_model.choices(answers.base), base_model.folders_text(), *description]
    saved = gr.Dropdown(saved_settings.names(), value=None)
    return [preset, name, trigger, *about_base, saved, *refill(answers), *plan(answers)]


def _is_preset(name: str) -> bool:
    return name in [key for _, key in PRESETS]


def remember(project: str | None, key: str, value: str) -> None:
    """Remember an answer for the next visit, unless it is a name that a run cannot have."""
    if project and (key != "name" or paths.is_name(value)):
        page_memory.remember(project, key, value)


def remember_settings(answers: Answers) -> dict[str, Any]:
    """Remember what the user changed in the form, for the next visit of the project; returns the fields' notes."""
    if answers.project:
        page_memory.remember(answers.project, "base", answers.base)
        page_memory.remember(answers.project, "settings", json.dumps(answers.settings()))
    return answers.notes()


def save_settings(answers: Answers, name: str | None) -> list[Any]:
    """Save the settings of the form under a name."""
    name = (name or "").strip()
    if not name:
        raise UserError("These settings have no name yet.", "Type one beside Save.")
    saved_settings.save(name, {"preset": answers.preset, "base": answers.base, "settings": answers.settings()})
    return [gr.Dropdown(saved_settings.names(), value=name), ""]


def load_settings(name: str | None) -> list[Any]:
    """Return the form as it was saved under a name: preset, base, what it was filled from, and the values."""
    if not name:
        raise UserError("No saved settings are chosen.", "Choose some from the list.")
    saved = saved_settings.load(name)
    preset, base = str(saved.get("preset", "character")), str(saved.get("base", MICRO))
    if not _is_preset(preset):
        raise UserError("The settings {name!r} cannot be used.", "Save them again.", name=name)
    own = settings_form.own_of(ENTRIES, dict(saved.get("settings", {})))
    return [preset, base, *_form_values(preset, base, own)]


def refill(answers: Answers) -> list[Any]:
    """Return the form for another preset or base: what the user changed stays, the rest follows."""
    return _form_values(answers.preset, answers.base, answers.own)


def fix_conflict(answers: Answers, event: gr.EventData) -> list[Any]:
    """Return the form with a conflict resolved: the field gets the value that goes with the other settings."""
    error = settings_form.conflicts(ENTRIES, answers.data()).get(str(event.field))
    if error is None or error.fix is None:
        raise UserError("This conflict is already resolved.", "")
    return _with_settings(answers, answers.own | {event.field: error.fix})


def reset(answers: Answers, event: gr.EventData) -> list[Any]:
    """Return the form with one field as the preset and the base model have it."""
    return _with_settings(answers, {field: value for field, value in answers.own.items() if field != event.field})


def reset_all_settings(answers: Answers) -> list[Any]:
    """Return the form as the preset and the base model have it."""
    return _with_settings(answers, {})


def _with_settings(answers: Answers, own: dict[str, Any]) -> list[Any]:
    answers = replace(answers, own=own)
    remember_settings(answers)
    return refill(answers)


def _form_values(preset: str, base: str, own: dict[str, Any]) -> list[Any]:
    filled = settings_form.fill(ENTRIES, preset, base, own)
    return [asdict(filled), *filled.values]


def exposures(effort: str, preset: str, base: str | None) -> list[Any]:
    """Return exposures and steps for an effort: how often each image is seen, and no fixed number of steps."""
    standard = settings_form.standard(preset, (base or "").strip()).training.exposures
    if effort not in EFFORTS:
        return [standard, 0]
    _, factor = EFFORTS[effort]
    return [round(standard * factor), 0]


def asks_for_trigger(answers: Answers) -> bool:
    """Tell whether a start is held up once because there is no trigger word."""
    if not answers.project or answers.trigger:
        return False
    return not page_memory.answer(answers.project, "without-trigger")


def create(answers: Answers) -> Run:
    """Create a run from the form, and remember the answers.

    Raises:
        UserError: a setting is invalid, or the dataset cannot be trained on.
    """
    run = create_run(answers.project, answers.data())
    for key, value in (("preset", answers.preset), ("name", answers.data()["name"]), ("trigger", answers.trigger)):
        page_memory.remember(answers.project, key, value)
    remember_settings(answers)
    return run
