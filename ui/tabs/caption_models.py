"""Captions written by a model, in the Images tab: the model, its options and its download, the job and its progress."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from trainer import captioning, config, confinement, paths, runs
from trainer.captioning import CaptionConfig, kinds
from trainer.captioning.kinds import Kind
from trainer.data.captions import one_line
from trainer.errors import UserError
from trainer.i18n import _, ngettext
from trainer.runs import control
from ui.state import hub_downloads, page_memory, projects
from ui.tabs import base_model, image_grid
from ui.tabs.image_grid import Selection
from ui.templates import render
from ui.widgets import run_html
from ui.widgets.fields import field
from ui.widgets.handlers import CHOICE, Several, listen

SERVER = "server"  # chosen instead of a model
# Settings that depend on the kind of model, in the order of the page.
OPTIONS = ("prompt", "florence_task", "threshold", "character_threshold", "categories", "blacklist", "tokens")
EXISTING = [
    (_("Leave them as they are"), "keep"),
    (_("Add the new text after them"), "add"),
    (_("Replace them (you can undo it)"), "replace"),
]
TASKS = [
    (_("One sentence"), "caption"),
    (_("A few sentences"), "detailed_caption"),
    (_("A paragraph"), "more_detailed_caption"),
]
CATEGORIES = [(_("General"), "general"), (_("Characters"), "character"), (_("Rating"), "rating")]


@dataclass(frozen=True)
class Writer:
    """The components. `options` are those of `CaptionConfig`, by their names; only those of the model are shown."""

    model: gr.Dropdown
    about: gr.HTML
    download: gr.Button
    cancel: gr.Button
    server: gr.Textbox
    server_model: gr.Textbox
    options: dict[str, Any]
    existing: gr.Radio
    review: gr.Checkbox
    write: gr.Button
    stop: gr.Button
    writing: gr.HTML
    timer: gr.Timer
    downloading: gr.Timer

    @property
    def outputs(self) -> dict[str, Any]:
        """The components that `show` returns values for."""
        return {"model": self.model, **self.described, **self.live}

    @property
    def described(self) -> dict[str, Any]:
        """The components that `describe` returns values for: they change with the model."""
        names = ("about", "download", "cancel", "downloading", "server", "server_model")
        return {**{name: getattr(self, name) for name in names}, "options": Several(self.options)}

    @property
    def live(self) -> dict[str, Any]:
        """The components that `draw` returns values for."""
        return {name: getattr(self, name) for name in ("writing", "write", "stop", "timer")}

    @property
    def settings(self) -> Several:
        """The components whose values `write` gets."""
        names = ("model", "existing", "review", "server", "server_model")
        return Several({**{name: getattr(self, name) for name in names}, **self.options})


def build() -> Writer:
    """Draw the components."""
    suggestion = _("Choose one, or type its name on the Hugging Face Hub or a folder on this machine.")
    model = field(gr.Dropdown, "caption-model", _("Caption model"), suggestion, choices=[], allow_custom_value=True)
    about = gr.HTML(elem_id="caption-model-description")
    download = gr.Button(_("Download"), visible=False, elem_id="download-caption-model", size="sm")
    cancel = gr.Button(_("Cancel download"), visible=False, elem_id="cancel-caption-model", size="sm")
    example = _("Such as http://127.0.0.1:1234/v1. It gets the images.")
    hidden = {"visible": False, "max_lines": 1}
    server = field(gr.Textbox, "caption-server", _("Address of the server"), example, **hidden)
    server_model = field(gr.Textbox, "caption-server-model", _("Model on the server"), **hidden)
    options = _options()
    existing = field(gr.Radio, "existing", _("Existing captions"), choices=EXISTING, value="keep")
    place = _("Each is shown below its image, with Keep and Discard.")
    review = field(gr.Checkbox, "review", _("Review before they are kept"), place)
    with gr.Row(elem_classes="tools"):
        write = gr.Button(_("Write captions"), elem_id="write", size="sm")
        stop = gr.Button(_("Stop and keep finished captions"), elem_id="write-stop", size="sm", visible=False)
    writing = gr.HTML(elem_id="writing")
    timers = gr.Timer(1, active=False), gr.Timer(base_model.REFRESHED_EVERY, active=False)
    return Writer(
        model, about, download, cancel, server, server_model, options, existing, review, write, stop, writing, *timers
    )


def _options() -> dict[str, Any]:
    """Draw the options that depend on the model, by their names in its settings, hidden until one is chosen."""
    defaults = CaptionConfig(dataset="-", model="-")
    hidden = partial(field, visible=False)
    likely = partial(hidden, gr.Slider, minimum=0.05, maximum=0.95, step=0.05)
    chance, rarer = _("Minimum probability of a tag"), _("Minimum probability of a character")
    length = _("0: what suits the model.")
    kinds_of_tags = {"choices": CATEGORIES, "value": list(defaults.categories)}
    return {
        "prompt": hidden(gr.Textbox, "caption-prompt", _("Prompt"), value=defaults.prompt, lines=2),
        "florence_task": hidden(gr.Dropdown, "caption-task", _("Length"), choices=TASKS, value=defaults.florence_task),
        "threshold": likely("caption-threshold", chance, value=defaults.threshold),
        "character_threshold": likely("caption-character-threshold", rarer, value=defaults.character_threshold),
        "categories": hidden(gr.CheckboxGroup, "caption-categories", _("Kinds of tags"), **kinds_of_tags),
        "blacklist": hidden(
            gr.Textbox, "caption-blacklist", _("Tags to leave out"), _("Separated by commas."), max_lines=1
        ),
        "tokens": hidden(gr.Number, "caption-tokens", _("Maximum length in tokens"), length, value=0),
    }


def connect(writer: Writer, project: gr.Textbox) -> None:
    """Connect what changes no captions: the description of the model, its download, and the button that stops it."""
    model, described = {"model": writer.model}, writer.described
    listen(writer.model.input, describe, model, described, kind=CHOICE)
    listen(writer.download.click, download, model, described)
    listen(writer.cancel.click, cancel, model, described)
    listen(writer.downloading.tick, describe, model, described, kind=CHOICE)
    listen(writer.stop.click, stop, {"project": project}, writer.live)


def show(project: str) -> dict[str, Any]:
    """Return values of `Writer.outputs` for a project."""
    keys = {"model": "caption-model", "server": "caption-server", "server_model": "caption-server-model"}
    known = {name: page_memory.answer(project, key) if project else "" for name, key in keys.items()}
    described = describe(known["model"])
    is_server = known["model"] == SERVER
    return {
        **described,
        "model": gr.Dropdown(_choices(), value=known["model"] or None, allow_custom_value=True),
        "server": gr.Textbox(known["server"], visible=is_server),
        "server_model": gr.Textbox(known["server_model"], visible=is_server),
        **draw(project),
    }


def _choices() -> list[tuple[str, str]]:
    choices = []
    for known in kinds.WELL_KNOWN:
        here = kinds.find(known.model) is not None
        choices.append((known.title if here else _("{model}, to download", model=known.title), known.model))
    choices.append((_("A server (OpenAI-compatible)"), SERVER))
    return choices


# The model ------------------------------------------------------------------------------------------------------


def describe(model: str | None) -> dict[str, Any]:
    """Return values of `Writer.described`: what the model is or lacks, and the options that it understands."""
    model = _name(model)
    current = hub_downloads.find(model)
    if current and current.running:
        return _described(base_model.progress(current), None, downloading=True)
    try:
        kind = _kind(model)
    except UserError as error:
        return _described(str(error), None)
    if model in ("", SERVER):
        return _described("", kind, is_server=model == SERVER)
    if kind and kinds.find(model):
        return _described(confinement.caution(), kind)
    text = current.error if current and current.error else _missing(model)
    return _described(text, kind, can_download=kinds.is_hub_name(model))


def _described(
    text: str, kind: Kind | None, *, is_server: bool = False, can_download: bool = False, downloading: bool = False
) -> dict[str, Any]:
    options = kind.options if kind else ()
    return {
        "about": render("said.html", role="status", look="quiet", text=text) if text else "",
        "download": gr.Button(visible=can_download),
        "cancel": gr.Button(visible=downloading),
        "downloading": gr.Timer(active=downloading),
        "server": gr.Textbox(visible=is_server),
        "server_model": gr.Textbox(visible=is_server),
        "options": {name: gr.update(visible=name in options) for name in OPTIONS},
    }


def _kind(model: str) -> Kind | None:
    """Return the kind of a model as far as it is known.

    Raises:
        UserError: it is here, and not a model that writes captions.
    """
    if model == SERVER:
        return kinds.SERVER
    folder = kinds.find(model) if model else None
    if folder:
        return kinds.look(folder)
    return next((known.kind for known in kinds.WELL_KNOWN if known.model == model), None)


def _missing(model: str) -> str:
    known = next((known for known in kinds.WELL_KNOWN if known.model == model), None)
    if known or kinds.is_hub_name(model):
        return hub_downloads.offer(model, known)
    return _("There is no such folder on this machine.")


def download(model: str | None) -> dict[str, Any]:
    """Start to download the model, and describe it."""
    hub_downloads.start(_name(model))
    return describe(model)


def cancel(model: str | None) -> dict[str, Any]:
    """Cancel the download of the model, and describe it."""
    hub_downloads.cancel(_name(model))
    return describe(model)


def _name(model: str | None) -> str:
    return paths.unquoted(one_line(model or ""))


# The job --------------------------------------------------------------------------------------------------------


def write(project: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Start a run that writes captions, from values of `Writer.settings`; returns values of `Writer.live`."""
    return start(project, read_settings(project, values))


def read_settings(project: str, values: Mapping[str, Any]) -> CaptionConfig:
    """Return the settings that values of `Writer.settings` ask for, with the options of the model alone.

    Raises:
        UserError: no model is chosen, or one of them is not valid.
    """
    name = _name(values["model"])
    if not name:
        raise UserError(
            "No caption model is chosen.", "Type the name of one, such as {suggested}.", suggested=captioning.SUGGESTED
        )
    result = "review" if values["review"] else "save"
    settings = {"dataset": project, "model": name, "existing": values["existing"], "result": result}
    if name == SERVER:
        server = one_line(values["server"] or "")
        if not server:
            raise UserError("The address of the server is missing.", "Write it as http://127.0.0.1:1234/v1.")
        settings |= {"server": server, "model": one_line(values["server_model"] or "") or "default"}
    kind = _kind(name)
    understood = kind.options if kind else ()
    settings |= {
        option: values[option] for option in understood if values[option] not in (None, "")
    }  # else the default
    return config.check(CaptionConfig, settings)


def start(project: str, settings: CaptionConfig, execute: Callable[[runs.Run], None] = runs.start) -> dict[str, Any]:
    """Start a run with these settings, and remember its model; returns values of `Writer.live`."""
    projects.folder(project)
    if is_writing(project):
        raise UserError("Captions are already being written.", "Wait until they are finished, or stop them first.")
    run = captioning.create(settings)
    page_memory.remember(project, "caption-model", SERVER if settings.server else settings.model)
    if settings.server:
        page_memory.remember(project, "caption-server", settings.server)
        page_memory.remember(project, "caption-server-model", settings.model)
    execute(run)
    return draw(project)


def stop(project: str) -> dict[str, Any]:
    """Ask the model to stop, or end it if it did not react; finished captions are kept."""
    run = captioning.newest(project)
    if run:
        control.stop(run)
    return draw(project)


def poll(project: str, trigger: str, selection: Selection) -> dict[str, Any]:
    """Show the progress of the model; when it has ended, show its captions in the grid."""
    progress = draw(project)
    return progress if is_writing(project) else progress | image_grid.draw(project, trigger, selection)


def is_writing(project: str) -> bool:
    """Return True if a model is writing captions for a project."""
    view = _view(project)
    return view is not None and view.status in runs.ACTIVE


def draw(project: str) -> dict[str, Any]:
    """Return values of `Writer.live`: the progress of the model, and the buttons."""
    view = _view(project)
    status, active, label = "", False, _("Stop and keep finished captions")
    if view:
        status, active = _status(view), view.status in runs.ACTIVE
        if view.is_unresponsive(time.time()):
            label = _("End now")
    return {
        "writing": status,
        "write": gr.Button(visible=not active),
        "stop": gr.Button(label, visible=active),
        "timer": gr.Timer(active=active),
    }


def _view(project: str) -> runs.View | None:
    """Return the newest captioning run of a project."""
    run = captioning.newest(project) if project else None
    return runs.look(run) if run else None


def _status(view: runs.View) -> str:
    match view.status:
        case "failed":
            return run_html.failure(view.state)
        case "finished" | "stopped":
            written = sum(1 for text in captioning.read_captions(view.run).values() if text)
            text = ngettext(
                "{state}: {n} caption was written.",
                "{state}: {n} captions were written.",
                written,
                state=runs.STATUS_LABELS[view.status],
            )
        case "interrupted":
            text = _("It was interrupted, and no caption was changed. Start it again.")
        case _unused:
            return run_html.work(view, _("Captions"))
    return render("said.html", role="status", look="quiet", text=text)
