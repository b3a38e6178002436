"""Base model in the Train tab: the field, what is said under it, the download, and the folders of other programs."""

from dataclasses import dataclass
from typing import Any, TypedDict

import gradio as gr

from trainer import paths
from trainer.base_models import MICRO
from trainer.i18n import _
from ui.state import base_model_choices, hub_downloads, page_memory
from ui.state.base_model_choices import Description
from ui.templates import render
from ui.widgets.fields import field
from ui.widgets.handlers import ACT, CHOICE, START, TICK, listen

REFRESHED_EVERY = 1.0  # seconds, while something is downloaded


@dataclass(frozen=True)
class BaseModel:
    """The components; `described` are those that change with the base.

    `downloaded` is the base whose download has just ended.
    """

    field: gr.Dropdown
    text: gr.HTML
    download: gr.Button
    cancel: gr.Button
    timer: gr.Timer
    downloaded: gr.State
    folders: gr.Textbox

    @property
    def described(self) -> dict[str, Any]:
        """Components by their names in `Described`."""
        return {"text": self.text, "download": self.download, "cancel": self.cancel, "timer": self.timer}


class Described(TypedDict):
    """Values that change with the base model."""

    text: str
    download: gr.Button
    cancel: gr.Button
    timer: gr.Timer


def build() -> BaseModel:
    """Draw the field and what belongs to it."""
    about = _("Or type a folder, a .safetensors file or a name on the Hugging Face Hub.")
    base = field(gr.Dropdown, "base", _("Base model"), about, choices=[], allow_custom_value=True)
    text = gr.HTML(elem_id="base-description")
    download = gr.Button(_("Download"), visible=False, elem_id="download-base", size="sm")
    cancel = gr.Button(_("Cancel download"), visible=False, elem_id="cancel-download", size="sm")
    with gr.Accordion(_("Models of other programs"), open=False, elem_id="model-folders"):
        about = _(
            "Folders of ComfyUI, A1111, Forge or of any .safetensors files, one per line; their models are listed."
        )
        folders = field(gr.Textbox, "model-folders-list", _("Folders"), about, lines=2, max_lines=6)
    return BaseModel(base, text, download, cancel, gr.Timer(REFRESHED_EVERY, active=False), gr.State(""), folders)


def connect(model: BaseModel, vae: gr.Textbox) -> None:
    """Connect the buttons, and describe another base, and a VAE given with it, as soon as it is chosen or typed."""
    named = {"base": model.field, "vae": vae}
    described = model.described
    listen([model.field.input, vae.change], describe, named, described, kind=CHOICE)
    listen(model.download.click, download, named, described, kind=START)
    listen(model.cancel.click, cancel, named, described, kind=ACT)
    listen(model.timer.tick, follow, named, {**described, "downloaded": model.downloaded}, kind=TICK)
    base = {"base": model.field}
    listen(model.folders.blur, set_folders, {"text": model.folders, **base}, base, kind=ACT)


def describe(base: str | None, vae: str | None = "") -> Described:
    """Describe a base model, and offer what can be done about it."""
    description = look(base, vae)
    current = hub_downloads.find(paths.unquoted(base or ""))
    downloading = current is not None and current.running
    is_wrong = not description.is_usable and not description.can_download and not downloading
    role, kind = ("alert", "bad") if is_wrong else ("", "quiet")
    return Described(
        text=render("said.html", role=role, look=kind, text=description.text),
        download=gr.Button(visible=description.can_download and not downloading),
        cancel=gr.Button(visible=downloading),
        timer=gr.Timer(active=downloading),
    )


def look(base: str | None, vae: str | None = "") -> Description:
    """Return what is known of a base model; a start is possible only with one that can be used."""
    base = paths.unquoted(base or "") or MICRO
    current = hub_downloads.find(base)
    if current and current.running:
        return Description(progress(current), is_usable=False)
    description = base_model_choices.describe(base, paths.unquoted(vae or ""))
    if current and current.error and not description.is_usable:
        return Description(current.error, is_usable=False, can_download=True)
    return description


def progress(current: hub_downloads.Download) -> str:
    """Describe how far a download is."""
    if not current.total:
        return _("Asking the Hugging Face Hub ...")
    return _(
        "Downloading: {done:.1f} of {total:.1f} GB ({percent} %).",
        done=current.done / 2**30,
        total=current.total / 2**30,
        percent=int(100 * current.done / current.total),
    )


def download(base: str | None, vae: str | None = "") -> Described:
    """Start to download the base model, and describe it."""
    hub_downloads.start(paths.unquoted(base or ""))
    return describe(base, vae)


def follow(base: str | None, vae: str | None = "") -> dict[str, Any]:
    """Describe a base model that is being downloaded, and say which one is ready: the form then fits its family."""
    current = hub_downloads.find(paths.unquoted(base or ""))
    is_ready = current is not None and not current.running and not current.error
    return {**describe(base, vae), "downloaded": base if is_ready else ""}


def cancel(base: str | None, vae: str | None = "") -> Described:
    """Cancel the download of the base model, and describe it."""
    hub_downloads.cancel(paths.unquoted(base or ""))
    return describe(base, vae)


def set_folders(text: str, base: str | None) -> dict[str, gr.Dropdown]:
    """Remember the folders of other programs; returns the field with their models."""
    base_model_choices.set_folders(text or "")
    return {"base": choices(base or MICRO)}


def choices(base: str) -> gr.Dropdown:
    """Return the field with all base models that can be chosen."""
    return gr.Dropdown(base_model_choices.choices(), value=base, allow_custom_value=True)


def folders_text() -> str:
    """Return the folders of other programs, one per line."""
    return "\n".join(page_memory.model_folders())
