"""The page for programs: a named, typed endpoint for each thing that a person can do (docs/api.md shows how).

All are plain functions on the same folders. A wrong value is told in words, as on the page.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import config as configs
from trainer import paths, runs
from trainer.data import checks, dataset, sandbox
from trainer.data.captions import read_caption
from trainer.errors import UserError
from trainer.runs import archive
from ui.server import media
from ui.state import adapter_choices, page_memory
from ui.state.run_watcher import Watch
from ui.state.sampler_client import Painter
from ui.tabs import run_view, try_out
from ui.tabs.image_grid import folder_of
from ui.widgets import settings_form
from ui.widgets.handlers import handled

COMMANDS = (*runs.COMMANDS, "pause", "go_on", "resume", "more")
Told = dict[str, Any]


def build(painter: Painter, watch: Watch) -> None:
    """Offer the endpoints, inside the page's blocks."""

    def start_training(project: str, preset: str = "character", settings: dict[str, Any] | None = None) -> Told:
        """Start a run. `settings` by their paths: {"name": "mira", "trigger": "miraxo", "training.steps": 200}."""
        run = create(project, preset, settings or {})
        run_view.begin(run, painter, watch)
        return told(run.id)

    def control(run: str, command: str) -> Told:
        """Ask a run for something: stop, pause, go_on, resume, more (steps), checkpoint, preview, or cooldown."""
        if command in ("resume", "more"):
            {"resume": run_view.go_on, "more": run_view.more}[command](run, painter, watch)
        else:
            ask(run, command)
        return told(run)

    def list_adapters() -> list[dict[str, str]]:
        """All adapters that there are, the newest first; `key` is what make_picture takes."""
        return [{"label": label, "key": key} for label, key in adapter_choices.choices(watch)]

    def make_picture(
        prompt: str, adapter: str = "", strength: float = 1.0, settings: dict[str, Any] | None = None
    ) -> Iterator[Told]:
        """Make a picture, at last with its address. `settings`: seed, steps, guidance, negative, size ("512 x 768")."""
        asked = wanted(prompt, adapter, strength, settings or {})
        for _, files_on_show, seed in try_out.paint(painter, watch, asked):
            picture = f"/media/picture/{files_on_show[0]}" if files_on_show else ""
            yield {"done": bool(picture), "picture": picture, "seed": seed}

    for endpoint in (
        projects, create_project, add_images, images, set_caption, remove_image, start_training, status, list_runs,
        control, rename_run, delete_run, restore_run, list_adapters, make_picture,
    ):  # fmt: skip
        gr.api(handled(endpoint), api_name=endpoint.__name__)


def ask(run: str, command: str) -> None:
    """Hand a command to a run that is at work.

    Raises:
        UserError: it is no command, or the run is not at work.
    """
    if command in ("pause", "go_on"):
        runs.pause(runs.find(run), go_on=command == "go_on")
    elif command in runs.COMMANDS:
        run_view.ask(run, command)
    else:
        raise UserError("{command!r} is no command.", "Use one of {known}.", command=command, known=", ".join(COMMANDS))


def wanted(prompt: str, adapter: str, strength: float, settings: dict[str, Any]) -> try_out.Asked:
    """One picture, with what suits the adapter where the settings say nothing.

    Raises:
        UserError: there is no such setting.
    """
    usual = try_out.usual_settings(adapter)
    values: dict[str, Any] = {
        "seed": 1, "steps": usual.steps, "guidance": usual.guidance, "negative": "", "size": "",
    }  # fmt: skip
    for name in settings.keys() - values.keys():
        raise UserError(
            "{name!r} is no setting of a picture.", "Use one of {known}.", name=name, known=", ".join(values)
        )
    return try_out.Asked(
        adapter=adapter, prompt=prompt, strength=strength, view="one", fresh=False, last=[], base="",
        **values | settings,
    )  # fmt: skip


# Projects -------------------------------------------------------------------------------------------------------


def projects() -> list[str]:
    """Names of all projects."""
    return dataset.names()


def create_project(name: str) -> str:
    """Make a new, empty project; gives its name."""
    if name in dataset.names():
        raise UserError("There is a project {name!r} already.", "Choose another name.", name=name)
    dataset.create(paths.check_name(name, "project"))
    return name


def add_images(project: str, images: list[Any]) -> Told:
    """Add uploaded files to a project: pictures, .txt captions of the same names, or a .zip of them.

    `images` are files of the Gradio client (handle_file), or the paths that /gradio_api/upload answered with.
    """
    folder, sources = folder_of(project), [_uploaded(one) for one in images]
    try:
        report = sandbox.add(folder, sources)
    finally:
        for _, path in sources:
            path.unlink(missing_ok=True)
    return {"added": report.added, "refused": dict(report.refused), "told": report.sentence()}


def _uploaded(given: Any) -> tuple[str, Path]:  # noqa: ANN401 - whatever a client sends
    """An uploaded file's name and path.

    Raises:
        UserError: it is nothing that was uploaded to this server.
    """
    text = given.get("path") if isinstance(given, dict) else given
    refusal = UserError("This is no file that was uploaded.", "Upload it first, then give the path that you got.")
    if not isinstance(text, str):
        raise refusal
    place, path = Path(os.environ["GRADIO_TEMP_DIR"]).resolve(), Path(text).resolve()
    if not path.is_relative_to(place) or not path.is_file():
        raise refusal
    return path.name, path


def images(project: str) -> list[Told]:
    """The pictures of a project with their captions and what is wrong with them."""
    folder = folder_of(project)
    found: dict[str, list[str]] = {}
    for problem in checks.find(folder, page_memory.answer(project, "trigger")):
        found.setdefault(problem.name, []).append(problem.message)
    return [
        {"image": one.name, "caption": one.caption, "problems": found.get(one.name, [])} for one in dataset.read(folder)
    ]


def set_caption(project: str, image: str, caption: str) -> str:
    """Write the caption of a picture; gives it as it was kept."""
    folder_of(project)
    picture = media.find_picture(project, image)
    dataset.write_caption(picture, caption[:10_000])
    return read_caption(picture)


def remove_image(project: str, image: str) -> list[Told]:
    """Move a picture and its caption to the bin; gives those that are left."""
    folder_of(project)
    dataset.remove(media.find_picture(project, image))
    return images(project)


# Runs -----------------------------------------------------------------------------------------------------------


def create(project: str, preset: str, settings: dict[str, Any]) -> runs.Run:
    """A new run of a project.

    Raises:
        UserError: a setting or the data set cannot be used.
    """
    fatal = next((one for one in checks.find(folder_of(project)) if one.fatal), None)
    if fatal:
        raise UserError(fatal.message, fatal.remedy)
    known = {key: page_memory.answer(project, key) for key in ("name", "trigger")}
    data = {**known, "dataset": project, "preset": preset}
    assignments = [f"{path}={json.dumps(value)}" for path, value in settings.items()]
    return runs.create(settings_form.build(settings_form.entries(), configs.override(data, assignments)))


def told(run_id: str) -> Told:
    """A run as it is now."""
    view = runs.look(runs.find(run_id))
    state = view.state
    file = f"/download/{quote(run_id)}/{quote(state.export)}" if view.status == "finished" and state.export else ""
    return {
        "run": run_id, "status": "paused" if view.paused else view.status, "step": state.step, "steps": state.steps,
        "loss": state.losses.get(state.step), "seconds_left": view.seconds_left, "message": state.message,
        "remedy": state.remedy, "change": state.change, "adapter": file,
        "checkpoints": [one.step for one in state.checkpoints],
        "previews": [f"/media/run/{quote(run_id)}/{quote(Path(one.file).name)}" for one in state.previews],
    }  # fmt: skip


def status(run: str) -> Told:
    """Return the status of a run: state, step, loss, seconds left, and URLs of its previews and its finished file."""
    return told(run)


def list_runs() -> list[Told]:
    """All runs, the newest first, as `status` tells them."""
    return [told(one.id) for one in runs.all_runs()]


def rename_run(run: str, name: str) -> str:
    """Call a run by another name; gives what it is called by now."""
    return archive.rename(runs.find(run), name).id


def delete_run(run: str) -> list[str]:
    """Move a run to the bin; gives the runs that are left."""
    archive.delete(runs.find(run))
    return [one.id for one in runs.all_runs()]


def restore_run() -> str:
    """Bring back the run that was deleted last; gives its name."""
    return archive.restore_last().id
