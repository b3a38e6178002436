"""Recipes on the page: fill the form from one, and save the form as one for kohya's scripts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from limner_extensions.recipes import reading
from limner_extensions.recipes.kohya import writing
from trainer import config as configs
from trainer import paths
from trainer.errors import UserError
from trainer.i18n import _, ngettext
from ui.state import page_memory, pending_uploads
from ui.state.answers import ENTRIES, Answers
from ui.tabs.settings import Form, fill_on, with_settings
from ui.templates import renderer
from ui.widgets import settings_form
from ui.widgets.handlers import VIEW, Untyped, listen

render = renderer(Path(__file__).parent / "templates")
FILES = [".json", ".toml", ".yaml", ".yml", ".safetensors"]
SAVED = "(file) => window.limnerForm.save(file)"


def build() -> Callable[[Form], list[Untyped]]:
    """Draw the buttons; return what connects them to the form."""
    with gr.Row(elem_classes="tools"):
        upload = gr.UploadButton(_("Import a recipe"), file_types=FILES, elem_id="import-recipe", size="sm")
        export = gr.Button(_("Download as kohya TOML"), elem_id="export-kohya", size="sm")
    report, exported = gr.HTML(elem_id="recipe-report"), gr.JSON(visible=False)

    def connect(form: Form) -> list[Untyped]:
        written = listen(
            export.click, save, {"answers": form.answers}, {"report": report, "exported": exported}, kind=VIEW
        )
        listen(written.success, None, {"file": exported}, js=SAVED)
        return [fill_on(upload.upload, use, form, {"upload": upload}, {"report": report, "base": form.base})]

    return connect


def use(answers: Answers, upload: str | None) -> dict[str, Any]:
    """Return what became of a recipe of another trainer, its base model, and the form; the upload is deleted.

    Raises:
        UserError: it is not a recipe.
    """
    if not upload:
        raise UserError("No recipe was chosen.", "Choose a settings file or an adapter.")
    try:
        recipe = reading.read(Path(upload), len(page_memory.captions(answers.project)))
    finally:
        pending_uploads.discard([Path(upload)])
    base = str(recipe.settings.get("model", {}).get("base", answers.base))
    own = settings_form.own_of(ENTRIES, recipe.settings)
    title = ngettext("{n} setting of {source}.", "{n} settings of {source}.", len(recipe.mapped), source=recipe.source)
    return {"report": _notes(title, recipe.notes), "base": base, **with_settings(replace(answers, base=base), own)}


def save(answers: Answers) -> dict[str, Any]:
    """Return what a file for kohya's scripts cannot say of the form, and that file, for the browser to save.

    Raises:
        UserError: a setting is out of bounds.
    """
    name = paths.safe_name(answers.name or answers.project, "settings")
    config = configs.build(configs.merge(answers.data(), {"name": name, "trigger": answers.trigger}))
    exported = writing.export(config, len(page_memory.captions(answers.project)))
    report: str = render("said.html", role="", look="quiet", text=_("The file says all of these settings."))
    if exported.notes:
        report = _notes(_("What the file cannot say"), exported.notes)
    return {"report": report, "exported": {"name": f"{name}-kohya.toml", "text": exported.text}}


def _notes(title: str, notes: tuple[str, ...]) -> str:
    return render("notes.html", title=title, notes=notes)
