"""Settings of the Train tab: the form of all settings, its search, saved settings, and the same settings as a text.

A change of many fields at once (another base, a reset, a text) fills those that were not edited, or filled by a later
change, meanwhile (see start.js).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import gradio as gr
import tomlkit

from trainer import config as configs
from trainer import extension, paths, runs
from trainer.base_models import MICRO
from trainer.config import TrainConfig, comparison
from trainer.errors import UserError
from trainer.i18n import _
from ui.state import run_settings
from ui.state.answers import ENTRIES, Answers
from ui.tabs import plan
from ui.templates import render
from ui.widgets import settings_form, settings_widgets
from ui.widgets.fields import field
from ui.widgets.handlers import ACT, CHOICE, VIEW, Handler, Several, Untyped, listen
from ui.widgets.scripts import read
from ui.widgets.settings_form import Filled

# Waits until what was edited is stored, and says when a change of the form was asked for: its first value.
STORED_FIRST = (
    "async (_, ...values) => { await window.limnerForm.store(); return [window.limnerFields.moment(), ...values]; }"
)
SEARCH = render("find_setting.html")
PRESETS = [(_("Character"), "character"), (_("Style"), "style")]
OFFERED = [key for _title, key in PRESETS]
AS_DRAWN = settings_form.fill(ENTRIES, "character", MICRO, {})
# Connects what an extension has drawn; returns the events that may bring another base model.
Connect = Callable[["Form"], list[Untyped]]


@dataclass(frozen=True)
class TextView:
    """The same settings as a text, and what is wrong with it."""

    whole: gr.Accordion
    text: gr.Textbox
    report: gr.HTML
    use: gr.Button


@dataclass(frozen=True)
class Settings:
    """The widgets of all settings by their ids, in the order of `ENTRIES`, and what belongs to them.

    `filled` is what the form was filled from. `opening` is what the server fills it from for a project, in a request of
    its own: each field costs the browser time.
    """

    widgets: dict[str, Any]
    sent: gr.JSON
    filled: gr.JSON
    opening: gr.State
    saved: gr.Dropdown
    use: gr.Button
    name: gr.Textbox
    save: gr.Button
    reset_all: gr.Button
    text: TextView
    notes: gr.HTML
    extensions: list[Connect]

    @property
    def whole(self) -> dict[str, Any]:
        """The components that `refill` returns values for."""
        return {"filled": self.filled, "widgets": Several(self.widgets)}


@dataclass(frozen=True)
class Form:
    """The form of the tab: its components read as `Answers`, those of the plan, the settings, two questions."""

    settings: Settings
    answers: Several
    planned: dict[str, Any]
    preset: gr.Radio
    base: gr.Dropdown


def build(standard: TrainConfig, apart: dict[str, Any]) -> Settings:
    """Draw the settings, but for the widgets that are drawn apart."""
    filled = gr.JSON(asdict(AS_DRAWN), visible=False, elem_id="filled")
    with gr.Accordion(_("Advanced"), open=False, elem_id="advanced", elem_classes="side"):
        with gr.Row(elem_id="settings-tools", elem_classes="bottom"):
            gr.HTML(SEARCH, elem_id="search-settings")
            saved = field(
                gr.Dropdown, "kept-settings", _("Saved settings"), choices=run_settings.saved(), min_width=140
            )
            use = gr.Button(_("Use"), elem_id="use-settings", scale=0, min_width=70)
            name = field(gr.Textbox, "settings-name", _("Save these settings as"), max_lines=1, min_width=140)
            save = gr.Button(_("Save"), elem_id="keep-settings", scale=0, min_width=70)
            reset_all = gr.Button(_("Reset all"), elem_id="reset-settings", scale=0, min_width=90)
        extensions = [draw() for draw in extension.panels("settings")]
        text_view = _build_text()
        with gr.Column(elem_id="settings"):
            widgets = settings_widgets.widgets(ENTRIES, standard, apart)
    return Settings(
        widgets=widgets,
        sent=gr.JSON({}, visible=False),
        filled=filled,
        opening=gr.State(),
        saved=saved,
        use=use,
        name=name,
        save=save,
        reset_all=reset_all,
        text=text_view,
        notes=gr.HTML(
            {}, html_template=render("form_notes.html"), js_on_load=read("form_notes.js"), elem_id="form-notes"
        ),
        extensions=extensions,
    )


def _build_text() -> TextView:
    with gr.Accordion(_("The same settings as a text"), open=False, elem_id="settings-text") as whole:
        title = _("Settings as TOML, for `limner train`")
        text = field(gr.Textbox, "settings-toml", title, lines=16, max_lines=30, buttons=["copy"])
        report = gr.HTML(elem_id="text-report")
        use = gr.Button(_("Fill the form from the text"), elem_id="use-text", size="sm")
    return TextView(whole, text, report, use)


def fill_on(
    event: Untyped,
    handler: Handler,
    form: Form,
    takes: Mapping[str, Any] | None = None,
    fills: Mapping[str, Any] | None = None,
) -> Untyped:
    """Fill the form on an event with what a handler returns, which gets the answers and the values of `takes`."""
    answers = {"answers": form.answers}
    taken, filled = {**answers, **(takes or {})}, {**(fills or {}), **form.settings.whole}
    filling = listen(event, handler, taken, filled, kind=VIEW, js=STORED_FIRST)
    return listen(filling.success, plan.plan, answers, form.planned, kind=VIEW)


def connect(form: Form, refilled_on: Sequence[Any]) -> list[Any]:
    """Connect the settings, which some events fill anew; returns the events that may bring another base model."""
    settings = form.settings
    answers = {"answers": form.answers}
    for event in refilled_on:
        fill_on(event, refill, form)
    fill_on(settings.notes.apply, fix_conflict, form)
    fill_on(settings.notes.undo, reset, form)
    fill_on(settings.reset_all.click, reset_all_settings, form)
    base, questions = {"base": form.base}, {"preset": form.preset, "base": form.base}
    saved = {"saved": settings.saved, "name": settings.name}
    listen(settings.save.click, save_settings, {**answers, "name": settings.name}, saved, kind=ACT)
    _connect_text(settings.text, answers)
    filling = [
        fill_on(settings.use.click, load_settings, form, {"name": settings.saved}, questions),
        fill_on(settings.text.use.click, use_text, form, {"text": settings.text.text}, base),
    ]
    return filling + [event for connect in settings.extensions for event in connect(form)]


def fill_opened(opened: Untyped, form: Form) -> None:
    """Fill the form of a page that has opened; until then nothing can be started.

    Not on a change of what is to be shown: a tab that is being drawn at that moment gets no such event.
    """
    settings = form.settings
    filling = listen(opened.success, show_filled, {"opening": settings.opening}, settings.whole, kind=VIEW)
    listen(filling.success, None, js="() => { document.documentElement.dataset.filled = 'yes'; return []; }")


def _connect_text(view: TextView, answers: dict[str, Any]) -> None:
    """Connect the settings as a text, which are written when they are opened and checked while they are edited."""
    with_text, report = {**answers, "text": view.text}, {"report": view.report, "use": view.use}
    listen(view.whole.expand, as_text, answers, {"text": view.text, **report}, kind=CHOICE)
    listen(view.text.change, check_text, with_text, report, kind=CHOICE)


# Handlers -------------------------------------------------------------------------------------------------------


def offered(preset: str, base: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a preset that the page offers and, by widget id, the changes with which it trains as settings say."""
    own = settings_form.own_of(ENTRIES, data)
    if preset in OFFERED:
        return preset, own
    if preset in get_args(configs.Preset):
        usual = settings_form.standard(preset, base).model_copy(update={"preset": "character"})
        own = settings_form.differences(ENTRIES, usual) | own
    return "character", own


def remember(answers: Answers) -> None:
    """Remember the whole form for the next visit of the project."""
    if answers.project:
        about = {"preset": answers.preset, "base": answers.base}
        run_settings.merge(answers.project, answers.own, about, sent=answers.sent, replaces=True)


def show_filled(opening: dict[str, Any] | None) -> dict[str, Any]:
    """Return the form as it was left; nothing if that is how it is drawn."""
    if not opening:
        return {}
    return _whole(Filled(**opening))


def save_settings(answers: Answers, name: str | None) -> dict[str, Any]:
    """Save the settings of the form under a name."""
    name = (name or "").strip()
    if not name:
        raise UserError("These settings have no name yet.", "Type one beside Save.")
    run_settings.save(name, {"preset": answers.preset, "base": answers.base, "settings": answers.settings()})
    return {"saved": gr.Dropdown(run_settings.saved(), value=name), "name": ""}


def load_settings(answers: Answers, name: str | None) -> dict[str, Any]:
    """Return preset, base, and the form as they were saved under a name."""
    if not name:
        raise UserError("No saved settings are chosen.", "Choose some from the list.")
    saved = run_settings.load(name)
    wanted, base = str(saved.get("preset", "character")), str(saved.get("base", MICRO))
    if wanted not in get_args(configs.Preset):
        raise UserError("The settings {name!r} cannot be used.", "Save them again.", name=name)
    preset, own = offered(wanted, base, dict(saved.get("settings", {})))
    filled = with_settings(replace(answers, preset=preset, base=base), own)
    return {"preset": preset, "base": base, **filled}


def use_run(answers: Answers, event: gr.EventData) -> dict[str, Any]:
    """Return preset, base, and the form as they were in a run, to train like it again or with a change.

    Raises:
        UserError: the run is no longer there, or its settings cannot be read.
    """
    run = runs.find(str(event.run))
    config, own = run_settings.own(run)
    if config.preset not in OFFERED:
        config, own = run_settings.own(run, "character")
    again = replace(answers, preset=config.preset, base=config.model.base)
    return {"preset": config.preset, "base": config.model.base, **with_settings(again, own)}


def refill(answers: Answers) -> dict[str, Any]:
    """Return the form for another preset or base: what the user changed stays, the rest follows."""
    return _whole(fill(answers))


def _whole(filled: Filled) -> dict[str, Any]:
    """Return values of `Settings.whole`."""
    values = zip((entry.id for entry in ENTRIES), filled.values, strict=True)
    return {"filled": asdict(filled), "widgets": dict(values)}


def fill(answers: Answers) -> Filled:
    """Return what the form is filled from."""
    return settings_form.fill(ENTRIES, answers.preset, answers.base, answers.own)


def fix_conflict(answers: Answers, event: gr.EventData) -> dict[str, Any]:
    """Return the form with a conflict resolved: the field gets the value that goes with the other settings."""
    field = str(event.field)
    error = settings_form.conflicts(ENTRIES, answers.data()).get(field)
    if error is None or error.fix is None:
        raise UserError("This conflict is already resolved.", "")
    return _with_fields(answers, answers.own | {field: settings_form.typed(error.fix)}, [field])


def reset(answers: Answers, event: gr.EventData) -> dict[str, Any]:
    """Return the form with some fields as the preset and the base model have them."""
    own = {field: value for field, value in answers.own.items() if field not in event.fields}
    return _with_fields(answers, own, event.fields)


def reset_all_settings(answers: Answers) -> dict[str, Any]:
    """Return the form as the preset and the base model have it."""
    return with_settings(answers, {})


def with_settings(answers: Answers, own: dict[str, Any]) -> dict[str, Any]:
    """Return the form with these settings in place of all that were changed, and remember them."""
    answers = replace(answers, own=own)
    remember(answers)
    return refill(answers)


def _with_fields(answers: Answers, own: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Return the form with some fields changed, and store these alone: another page may have stored others."""
    whole = refill(replace(answers, own=own))
    edited = {field: whole["widgets"][field] for field in fields}
    run_settings.merge(answers.project, edited, sent=answers.sent)
    return whole


# The settings as a text -----------------------------------------------------------------------------------------


def as_text(answers: Answers) -> dict[str, Any]:
    """Return the settings as TOML, all of them or, if some conflict, those that were changed; then `check_text`."""
    try:
        complete = settings_form.build(ENTRIES, answers.data()).model_dump(mode="json")
    except UserError:
        complete = configs.complete(answers.data())
    text = tomlkit.dumps({key: value for key, value in complete.items() if key not in comparison.ABOUT_THE_RUN})
    return {"text": text, **check_text(answers, text)}


def check_text(answers: Answers, text: str | None) -> dict[str, Any]:
    """Return a report of what is wrong with a text of settings, and its button, which is off until nothing is."""
    try:
        data = _parse(answers, text or "")
    except UserError as error:
        problems = [str(error)]
    else:
        problems = [error.message for error in configs.find_errors(data).values()]
    return {"report": render("problems.html", problems=problems), "use": gr.Button(interactive=not problems)}


def use_text(answers: Answers, text: str | None) -> dict[str, Any]:
    """Return the base, and the form with the settings of a text.

    Raises:
        UserError: the text is not TOML, or a setting in it is unknown or out of bounds.
    """
    data = _parse(answers, text or "")
    configs.build(data)
    base = paths.unquoted(str(data["model"]["base"]))
    own = settings_form.own_of(ENTRIES, data)
    return {"base": base, **with_settings(replace(answers, base=base), own)}


def _parse(answers: Answers, text: str) -> dict[str, Any]:
    """Return the partial settings of a text, completed by what the run is about.

    Raises:
        UserError: the text is not TOML.
    """
    return configs.merge(answers.about(), configs.parse(text, _("The text")))
