"""Train tab: what to teach, on which base model, for how long, and the start. The run view beside it is `run_view`."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr

from trainer import runs
from trainer.base_models import MICRO
from trainer.i18n import _
from trainer.runs import Run, short_address
from ui.state import page_memory, run_actions, run_settings
from ui.state.answers import ENTRIES, Answers, checked_config, create_run
from ui.state.order import Moment
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import base_model, run_view
from ui.tabs import settings as tab_settings
from ui.tabs.base_model import BaseModel
from ui.tabs.plan import EFFORTS, VAE, plan
from ui.tabs.run_view import NEXT_TITLE, START_TITLE, RunView
from ui.tabs.settings import Form
from ui.templates import render
from ui.widgets import settings_form, settings_widgets
from ui.widgets.fields import field
from ui.widgets.handlers import CHOICE, START, VIEW, Several, components, listen, listen_at_end
from ui.widgets.scripts import read

EXPOSURES, STEPS = "form-training-exposures", "form-training-steps"
DOUBLE_CLICK = 3.0  # seconds within which an equal request to start is the same click, until its run has ended
# Not by `interactive`: a plan that arrives meanwhile would turn the button on.
BUSY = f"() => {{ document.querySelector('#start').inert = true; return {json.dumps(_('Starting ...'))}; }}"
READY = (
    "() => { document.querySelector('#start').inert = false; "
    f"return document.querySelector('#dock button') ? {json.dumps(NEXT_TITLE)} : {json.dumps(START_TITLE)}; }}"
)
# Waits for captions that were typed, and for what the form is still to be filled with at the click; see start.js.
FILLED_FIRST = (
    "async (...values) => { const filled = window.limner.filled(FIELDS, values); await window.limnerSaved?.(); "
    "return filled; }"
)
STORED = "(value) => { window.limnerFields.store({ FIELD: value }); }"
HERE, CLUSTER = "here", "cluster"  # where a run is to train
APART = (("class_word",), ("training", "text_encoder"))  # drawn beside the basic questions
NO_TRIGGER = _(
    "There is no trigger word. Without one, nothing calls up what you teach: every image of the base model changes. "
    "Type one above, such as miraxo."
)
UNREADABLE = _("The settings that were remembered for this project cannot be read. The form shows the standard ones.")


@dataclass(frozen=True)
class Tab:
    """The components that other parts of the page read or fill.

    `form` is read as `Answers`; `show` returns values for `outputs`, `plan` those for `planned`.
    """

    trigger: gr.Textbox
    form: Several
    planned: dict[str, Any]
    outputs: dict[str, Any]
    view: RunView
    whole: Form
    dock: tuple[gr.Component, ...]


@dataclass(frozen=True)
class Start:
    """The button, where to run, and the question about a missing trigger word with its answer."""

    button: gr.Button
    place: gr.Radio
    no_trigger: gr.Column
    without: gr.Button


@dataclass
class LatestStart:
    """The latest request of all pages to start a run, and that run."""

    request: str = ""
    run: Run | None = None
    at: float = 0.0

    def note(self, request: str, run: Run) -> None:
        """Note that a request has started a run now."""
        self.request, self.run, self.at = request, run, time.monotonic()

    def same(self, request: str) -> Run | None:
        """Return the run that a double click, or a request that was sent twice, has started already.

        A run that has ended is not returned, however soon it did: who clicks after that asks for another one.
        """
        if self.run is None or request != self.request or time.monotonic() - self.at >= DOUBLE_CLICK:
            return None
        if runs.look(self.run).status not in runs.ACTIVE:
            return None
        return self.run


def build(project: gr.Dropdown, sampler: SamplerClient, watch: RunWatcher) -> Tab:
    """Draw the tab and connect it; the page draws what is in its `dock` below all tabs."""
    standard = settings_form.standard("character", MICRO)
    wide = {"size": "lg", "scale": 0, "min_width": 200}
    start = gr.Button(START_TITLE, variant="primary", elem_id="start", render=False, **wide)
    with gr.Column(elem_id="train-form"):
        with gr.Row(elem_id="train-columns", elem_classes="columns"):
            with gr.Column(scale=1, min_width=300, elem_classes="side"):
                questions, model, effort = _questions()
                apart = settings_widgets.some(ENTRIES, APART, standard)
                cautions = gr.HTML(elem_id="cautions", elem_classes="quiet")
            with gr.Column(scale=3, min_width=320, elem_id="train-live", elem_classes="canvas"):
                settings = tab_settings.build(standard, apart)
                view = RunView(start)
        with gr.Column(visible=False, elem_id="no-trigger", elem_classes="side") as no_trigger:
            gr.HTML(render("said.html", role="alert", look="", text=NO_TRIGGER))
            without = gr.Button(_("Train without a trigger word"), elem_id="without-trigger")
    running = gr.HTML(render("dock_place.html"), elem_id="in-dock", render=False)
    summary = gr.HTML(elem_id="plan", elem_classes="plan", render=False)
    places = [(_("this machine"), HERE), (short_address(run_actions.cluster()), CLUSTER)]
    options = {"choices": places, "value": HERE, "visible": bool(run_actions.cluster())}
    place = field(gr.Radio, "run-on", _("Run on"), scale=0, min_width=240, render=False, **options)
    base, widgets = model.field, settings.widgets
    about = {"sent": settings.sent, "project": project, **questions, "filled": settings.filled}
    form = Several({**about, **widgets}, Answers.from_form)
    planned = {"summary": summary, "cautions": cautions, "effort": effort, "notes": settings.notes, "start": start}
    described = model.described
    kept = {"folders": model.folders, **described, "saved": settings.saved, "opening": settings.opening}
    preset = questions["preset"]
    whole = Form(settings, form, planned, preset, base)
    dock = running, summary, place, start
    tab = Tab(questions["trigger"], form, planned, {**questions, **kept, **planned}, view, whole, dock)
    base_model.connect(model, widgets[VAE])
    _connect_form(tab)
    refilled = [preset.input, base.input, model.downloaded.change]
    for filling in tab_settings.connect(whole, refilled):
        listen(filling.success, base_model.describe, {"base": base, "vae": widgets[VAE]}, described, kind=VIEW)
    _connect_start(tab, Start(start, place, no_trigger, without), sampler, watch)
    run_view.connect(view, project, sampler, watch)
    return tab


def _questions() -> tuple[dict[str, Any], BaseModel, gr.Radio]:
    presets = {"choices": tab_settings.PRESETS, "value": "character"}
    preset = field(gr.Radio, "preset", _("What are you teaching?"), **presets)
    with gr.Row():
        name = field(gr.Textbox, "name", _("Name of the file"), max_lines=1, min_width=120)
        trigger = field(gr.Textbox, "train-trigger", _("Trigger word"), max_lines=1, min_width=120)
    model = base_model.build()
    efforts = [(title, key) for key, (title, _unused) in EFFORTS.items()]
    effort = field(gr.Radio, "effort", _("How long should it train?"), choices=efforts, value="balanced")
    return {"preset": preset, "name": name, "trigger": trigger, "base": model.field}, model, effort


def _connect_form(tab: Tab) -> None:
    """Store and plan what is edited. The browser reports edits of all settings as one event of their notes.

    If each setting had a listener, the browser would compare all of them with every component when the page opens.
    Edits are stored by `form_notes.js`, as are a chosen preset and base.
    """
    parts, planned, answers = tab.form.components, tab.planned, {"answers": tab.form}
    listen(planned["notes"].input, plan, answers, planned, kind=CHOICE)
    inputs = {**{name: parts[name] for name in ("sent", "project", "preset", "base")}, "effort": planned["effort"]}
    length = {"exposures": parts[EXPOSURES], "steps": parts[STEPS]}
    chosen = listen(planned["effort"].input, choose_effort, inputs, length, kind=CHOICE, js=tab_settings.STORED_FIRST)
    listen(chosen.success, plan, answers, planned, kind=VIEW)
    for name in ("preset", "base"):
        listen(parts[name].input, None, {name: parts[name]}, js=STORED.replace("FIELD", name))


def _connect_start(tab: Tab, parts: Start, sampler: SamplerClient, watch: RunWatcher) -> None:
    """Start a run on a click; without a trigger word, ask once whether that is intended."""
    latest = LatestStart()

    def begin(answers: Answers, place: str) -> dict[str, Any]:
        request = repr((answers, place))
        if run := latest.same(request):
            return {"view": run_view.draw(watch, run.id)}
        if asks_for_trigger(answers):
            checked_config(answers.project, answers.data())
            return {"question": gr.Column(visible=True)}
        run = run_actions.start(create(answers, run_actions.cluster() if place == CLUSTER else ""), sampler)
        latest.note(request, run)
        return {"question": gr.Column(visible=False), "view": run_view.draw(watch, run.id)}

    def begin_without(answers: Answers, place: str) -> dict[str, Any]:
        page_memory.remember(answers.project, "without-trigger", "yes")
        return begin(answers, place)

    takes = {"answers": tab.form, "place": parts.place}
    question = {"question": parts.no_trigger}
    fills = {**question, "view": Several(tab.view.outputs)}
    start = {"start": parts.button}
    filled = FILLED_FIRST.replace("FIELDS", json.dumps([part.elem_id for part in components(takes)]))
    for button, handler in ((parts.button, begin), (parts.without, begin_without)):
        listen(button.click, None, fills=start, js=BUSY)
        started = listen(button.click, handler, takes, fills, kind=START, js=filled)
        listen_at_end(started, None, fills=start, js=READY)
        listen(started.success, None, js=read("show_run.js"))
    listen(tab.trigger.input, lambda: {"question": gr.Column(visible=False)}, fills=question, kind=CHOICE)


# Handlers -------------------------------------------------------------------------------------------------------


def show(project: str) -> dict[str, Any]:
    """Return values of `Tab.outputs` for a page that opens: answers and settings as they were left, and the plan."""
    answers, data = remembered(project)
    description = base_model.describe(answers.base, answers.own.get(VAE))
    filled = tab_settings.fill(answers)
    return {
        "preset": answers.preset,
        "name": answers.name,
        "trigger": answers.trigger,
        "base": base_model.choices(answers.base),
        "folders": base_model.folders_text(),
        **description,
        "saved": gr.Dropdown(run_settings.saved(), value=None),
        "opening": gr.skip() if filled == tab_settings.AS_DRAWN else asdict(filled),
        **_plan(answers, data),
    }


def remembered(project: str) -> tuple[Answers, dict[str, Any] | None]:
    """Return the answers for a project as they were left, and the settings among them; None if they cannot be read."""
    preset, name, trigger, base = "character", "", "", ""
    data: dict[str, Any] | None = {}
    if project:
        preset, name, trigger, base = (
            page_memory.answer(project, key) for key in ("preset", "name", "trigger", "base")
        )
        data = page_memory.settings(project)
    preset, own = tab_settings.offered(preset, base or MICRO, data or {})
    return Answers(project, preset, name, trigger, base or MICRO, own), data


def plan_images(project: str) -> dict[str, Any]:
    """Return the plan for the images as they are now, from what is stored: the form may still be being filled.

    It has no notes at fields, and is empty for a page that has no project yet.
    """
    if not project:
        return {}
    return {name: value for name, value in _plan(*remembered(project)).items() if name != "notes"}


def _plan(answers: Answers, data: dict[str, Any] | None) -> dict[str, Any]:
    planned = dict(plan(answers))
    if data is None:
        planned["cautions"] = render("cautions.html", alarm=UNREADABLE, cautions=planned["cautions"])
    return planned


def choose_effort(
    project: str | None, effort: str, preset: str, base: str | None, sent: object = None
) -> dict[str, int]:
    """Return exposures and steps for an effort, and store them."""
    length = exposures(effort, preset, base)
    edited = {EXPOSURES: length["exposures"], STEPS: length["steps"]}
    run_settings.merge(project or "", edited, sent=Moment.read(sent))
    return length


def exposures(effort: str, preset: str, base: str | None) -> dict[str, int]:
    """Return exposures and steps for an effort: how often each image is seen, and no fixed number of steps."""
    standard = settings_form.standard(preset, (base or "").strip()).training.exposures
    if effort not in EFFORTS:
        return {"exposures": standard, "steps": 0}
    _, factor = EFFORTS[effort]
    return {"exposures": round(standard * factor), "steps": 0}


def asks_for_trigger(answers: Answers) -> bool:
    """Return True if a start is held up once because there is no trigger word."""
    if not answers.project or answers.trigger:
        return False
    return not page_memory.answer(answers.project, "without-trigger")


def create(answers: Answers, cluster: str = "") -> Run:
    """Create a run from the form, for this machine or the cluster at an address, and settle the answers.

    Raises:
        UserError: a setting is invalid, or the dataset cannot be trained on.
    """
    run = create_run(answers.project, answers.data(), cluster)
    page_memory.settle(answers.project, preset=answers.preset, name=answers.data()["name"], trigger=answers.trigger)
    return run
