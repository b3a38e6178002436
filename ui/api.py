"""The API: a named, typed Gradio endpoint for each thing that a user can do on the page (see docs/api.md).

All are plain functions on the same folders. Wrong values are answered with the messages of the page.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from trainer import config as configs
from trainer import extension, paths, runs
from trainer.data import checks, dataset, sandbox
from trainer.data.captions import read_text
from trainer.errors import UserError
from trainer.runs import archive
from ui.state import adapter_choices, page_memory, pending_uploads, run_actions
from ui.state import projects as project_folders
from ui.state.answers import create_run
from ui.state.run_watcher import RunWatcher
from ui.state.sampler_client import SamplerClient
from ui.tabs import try_out
from ui.tabs.sample_form import SampleForm
from ui.widgets.handlers import Handler, handled

COMMANDS = (*runs.COMMANDS, "pause", "go_on", "resume", "more", "again", "hold", "release")
SAMPLE_SETTINGS = ("seed", "steps", "guidance", "clip_skip", "negative", "size")
Json = dict[str, Any]


def build(sampler: SamplerClient, watch: RunWatcher) -> None:
    """Offer the endpoints, inside the page's blocks."""

    def start_training(project: str, preset: str = "character", settings: dict[str, Any] | None = None) -> Json:
        """Start a run. `settings` by their paths: {"name": "mira", "trigger": "miraxo", "training.steps": 200}."""
        run = create_run(project, run_settings(project, preset, settings or {}))
        run_actions.start(run, sampler)
        return status(run.id)

    def control(run: str, command: str) -> Json:
        """Control a run: stop, pause, go_on, resume, more (steps), checkpoint, preview, cooldown, hold, or release.

        `again` queues a copy of a failed run; its status is returned.
        """
        return status(send(run, command, sampler).id)

    def list_adapters() -> list[dict[str, str]]:
        """List all adapters, the newest first; `key` is what make_picture takes."""
        return [{"label": label, "key": key} for label, key in adapter_choices.choices(watch)]

    def make_picture(
        prompt: str, adapter: str = "", strength: float = 1.0, settings: dict[str, Any] | None = None
    ) -> Iterator[Json]:
        """Generate an image; return its URL. `settings`: seed, steps, guidance, clip_skip, negative, size (64 x 64)."""
        form = sample_form(prompt, adapter, strength, settings or {})
        for _, files, seed in try_out.generate(sampler, watch, form):
            url = f"/media/picture/{files[0]}" if files else ""
            yield {"done": bool(url), "picture": url, "seed": seed}

    endpoints: list[Handler] = [projects, create_project, add_images, images, set_caption, remove_image]
    endpoints += [start_training, status, list_runs, control, rename_run, delete_run, restore_run]
    endpoints += [list_adapters, make_picture]
    endpoints += [endpoint for build in extension.panels("api") for endpoint in build(sampler)]
    for endpoint in endpoints:
        gr.api(handled(endpoint), api_name=endpoint.__name__)


def send(run_id: str, command: str, sampler: SamplerClient) -> runs.Run:
    """Carry out a command of `control`; return the run that it concerns, a new one for `again`.

    Raises:
        UserError: there is no such command, or the run is not active.
    """
    match command:
        case "resume":
            return run_actions.resume(run_id, sampler)
        case "more":
            return run_actions.extend(run_id, sampler)
        case "again":
            return run_actions.retry(run_id, sampler)
        case "hold" | "release":
            run_actions.arrange(run_id, command, 0)
        case "pause" | "go_on":
            run_actions.pause(run_id, sampler, go_on=command == "go_on")
        case _ if command in runs.COMMANDS:
            run_actions.ask(run_id, command)
        case _:
            known = ", ".join(COMMANDS)
            raise UserError("{command!r} is not a command.", "Use one of {known}.", command=command, known=known)
    return runs.find(run_id)


def sample_form(prompt: str, adapter: str, strength: float, settings: dict[str, Any]) -> SampleForm:
    """Return the form of one image, with defaults that suit the adapter where the settings say nothing.

    Raises:
        UserError: there is no such setting.
    """
    for name in settings.keys() - set(SAMPLE_SETTINGS):
        known = ", ".join(SAMPLE_SETTINGS)
        raise UserError("{name!r} is not a setting of an image.", "Use one of {known}.", name=name, known=known)
    usual = try_out.usual_settings(adapter or "")
    form = SampleForm(
        adapter or "",
        prompt or "",
        strength,
        steps=usual.preview.steps,
        guidance=usual.preview.guidance,
        clip_skip=usual.model.clip_skip,
    )
    return replace(form, **{name: value for name, value in settings.items() if value is not None})


# Projects -------------------------------------------------------------------------------------------------------


def projects() -> list[str]:
    """List the names of all projects."""
    return dataset.names()


def create_project(name: str) -> str:
    """Create a new, empty project; returns its name."""
    return project_folders.create(paths.check_name(name, "project"))


def add_images(project: str, images: list[Any], keep_location: bool = False) -> Json:
    """Add uploaded files to a project: images, .txt captions of the same names, or a .zip of them.

    The place where photos were taken is removed, unless `keep_location` is set.
    `images` are files of the Gradio client (handle_file), or the paths that /gradio_api/upload returned.
    """
    folder, sources = project_folders.folder(project), [_uploaded(image) for image in images]
    try:
        report = sandbox.add(folder, sources, keep_location=keep_location)
    finally:
        pending_uploads.discard(path for _, path in sources)
    return {"added": report.added, "refused": dict(report.refused), "told": report.sentence()}


def _uploaded(file: object) -> tuple[str, Path]:
    """Return the name and path of an uploaded file.

    Raises:
        UserError: it was not uploaded to this server.
    """
    text = file.get("path") if isinstance(file, dict) else file
    refusal = UserError(
        "This is not an uploaded file.", "Upload it first, then pass the path that the upload returned."
    )
    if not isinstance(text, str):
        raise refusal
    path = pending_uploads.find(text)
    if path is None:
        raise refusal
    return path.name, path


def images(project: str) -> list[Json]:
    """List the images of a project with their captions and problems."""
    folder = project_folders.folder(project)
    problems: dict[str, list[str]] = {}
    examined = checks.examine(folder, page_memory.answer(project, "trigger"))
    for problem in examined.problems:
        problems.setdefault(problem.name, []).append(problem.message)
    return [
        {"image": example.name, "caption": example.caption, "problems": problems.get(example.name, [])}
        for example in examined.examples
    ]


def set_caption(project: str, image: str, caption: str) -> str:
    """Write the caption of an image; returns it as it was saved."""
    path = project_folders.find_image(project, image)
    dataset.write_caption(path, caption[:10_000])
    return read_text(path)


def remove_image(project: str, image: str) -> list[Json]:
    """Move an image and its caption to the bin; returns the images that are left."""
    dataset.remove(project_folders.find_image(project, image))
    return images(project)


# Runs -----------------------------------------------------------------------------------------------------------


def run_settings(project: str, preset: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run as one table: what the page remembers of the project, then `settings` by path.

    Raises:
        UserError: a setting is invalid.
    """
    remembered = {key: page_memory.answer(project, key) for key in ("name", "trigger")}
    assignments = [f"{path}={json.dumps(value)}" for path, value in settings.items()]
    return configs.override({**remembered, "dataset": project, "preset": preset}, assignments)


def status(run: str) -> Json:
    """Return the status of a run: state, step, loss, seconds left, and URLs of its previews and its finished file."""
    view = runs.look(runs.find(run))
    state, run_id = view.state, quote(run)
    adapter = ""
    if view.status == "finished" and state.export:
        adapter = f"/download/{run_id}/{quote(state.export)}"
    return {
        "run": run,
        "status": "paused" if view.paused else view.status,
        "step": state.step,
        "steps": state.steps,
        "loss": state.losses.get(state.step),
        "seconds_left": view.seconds_left,
        "message": state.message,
        "remedy": state.remedy,
        "change": state.change,
        "adapter": adapter,
        "checkpoints": [checkpoint.step for checkpoint in state.checkpoints],
        "previews": [f"/media/run/{run_id}/{quote(Path(preview.file).name)}" for preview in state.previews],
    }


def list_runs() -> list[Json]:
    """List all runs, the newest first, each as in `status`."""
    return [status(run.id) for run in runs.all_runs()]


def rename_run(run: str, name: str) -> str:
    """Rename a run; returns its new name."""
    return archive.rename(runs.find(run), name).id


def delete_run(run: str) -> list[str]:
    """Move a run to the bin; returns the runs that are left."""
    run_actions.delete(run)
    return [left.id for left in runs.all_runs()]


def restore_run() -> str:
    """Restore the run that was deleted last; returns its name."""
    return archive.restore_last().id
