"""Routes for the files that the page serves: thumbnails, previews, sample images, adapters, documentation. No others.

Each route takes names, never paths, checks them, and answers with a fixed content type. Gradio's own file route gets
access to none of these files.
"""

import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.background import BackgroundTask

from trainer import paths, runs
from trainer.data import dataset, image_stats, images
from trainer.errors import UserError
from trainer.runs import backup, checkpoints
from ui import audit
from ui.state import documentation, projects, run_watcher
from ui.templates import render

router = APIRouter()
Result = TypeVar("Result")
PREVIEW = re.compile(r"\d{1,9}_\d{1,3}\.png")
SAMPLE_IMAGE = re.compile(r"[0-9a-f]{32}\.png")
ADAPTER = re.compile(r"[\w-]{1,64}\.safetensors")
PRIVATE = {"Cache-Control": "private, max-age=3600"}
FRESH = {"Cache-Control": "private, no-store"}


@router.get("/help")
def start_of_help() -> RedirectResponse:
    """Lead to the first page of the documentation."""
    return RedirectResponse(documentation.ADDRESS + documentation.START)


@router.get("/help/{name:path}")
def help_page(name: str) -> Response:
    """Serve a file of the documentation, a page of it as HTML."""
    path = documentation.find(name)
    if path is None or path.suffix not in documentation.MEDIA_TYPES:
        raise HTTPException(404)
    if path.suffix != ".md":
        return FileResponse(path, media_type=documentation.MEDIA_TYPES[path.suffix], headers=PRIVATE)
    body = documentation.render(path)
    return HTMLResponse(render("help_page.html", title=path.stem, body=body), headers=PRIVATE)


@router.get("/media/dataset/{name}/{image}")
def thumbnail(name: str, image: str) -> Response:
    """Serve a thumbnail of an image in a dataset."""
    path = or_404(lambda: projects.find_image(name, image))
    return _thumbnail(path.parent, path)


@router.get("/media/image/{name}/{image}")
def image(name: str, image: str) -> FileResponse:
    """Serve an image of a dataset as it is stored, with the type of its extension, whatever else is in the file."""
    path = or_404(lambda: projects.find_image(name, image))
    if images.display_size(path) is None:
        raise HTTPException(404)
    return FileResponse(path, media_type=images.MEDIA_TYPES[path.suffix.lower()], headers=PRIVATE)


@router.get("/media/mask/{name}/{image}")
def mask(name: str, image: str) -> Response:
    """Serve a thumbnail of the mask of an image in a dataset."""
    path = or_404(lambda: projects.find_image(name, image))
    return _thumbnail(path.parent, dataset.mask_file(path))


@router.get("/media/mask/{name}/{image}/large")
def large_mask(name: str, image: str) -> FileResponse:
    """Serve the mask of an image in a dataset as it is stored, with a fixed type."""
    path = dataset.mask_file(or_404(lambda: projects.find_image(name, image)))
    if images.display_size(path) is None:
        raise HTTPException(404)
    return FileResponse(path, media_type="image/png", headers=PRIVATE)


def _thumbnail(folder: Path, image: Path) -> Response:
    try:
        return Response(images.thumbnail(folder, image), media_type="image/webp", headers=PRIVATE)
    except (UserError, OSError):
        raise HTTPException(404) from None


@router.get("/media/run/{run_id}/{preview}")
def preview(run_id: str, preview: str) -> FileResponse:
    """Serve a preview image of a run."""
    run = or_404(lambda: runs.find(run_id))
    path = _checked(run.folder / "previews", preview, PREVIEW)
    return FileResponse(path, media_type="image/png", headers=PRIVATE)


@router.get("/media/run/{run_id}/{preview}/small")
def small_preview(run_id: str, preview: str) -> Response:
    """Serve a thumbnail of a preview image."""
    run = or_404(lambda: runs.find(run_id))
    return _thumbnail(run.folder / "previews", _checked(run.folder / "previews", preview, PREVIEW))


@router.get("/media/run/{run_id}/{preview}/nearest")
def nearest_to_preview(run_id: str, preview: str) -> Response:
    """Serve the image that is most similar to a preview, among those that the run is trained on."""
    run = or_404(lambda: runs.find(run_id))
    return _nearest(_checked(run.folder / "previews", preview, PREVIEW), run)


@router.get("/media/picture/{image}/nearest/{run_id}")
def nearest_to_sample_image(image: str, run_id: str) -> Response:
    """Serve the image that is most similar to a sample image, among those that a run is trained on."""
    run = or_404(lambda: runs.find(run_id))
    return _nearest(_checked(paths.sample_images(), image, SAMPLE_IMAGE), run)


def _nearest(image: Path, run: runs.Run) -> Response:
    folder = or_404(lambda: dataset.find_folder(run.config().dataset))
    name = or_404(lambda: image_stats.nearest(folder, image.read_bytes()))
    if name is None:
        raise HTTPException(404)
    return _thumbnail(folder, folder / name)


@router.get("/media/picture/{image}")
def sample_image(image: str) -> FileResponse:
    """Serve an image generated in the Try out tab."""
    path = _checked(paths.sample_images(), image, SAMPLE_IMAGE)
    return FileResponse(path, media_type="image/png", headers=PRIVATE)


@router.get("/download/{run_id}/checkpoint/{step}")
def checkpoint(run_id: str, step: int) -> FileResponse:
    """Serve the adapter as it was after a step."""
    run = or_404(lambda: runs.find(run_id))
    path = checkpoints.adapter_file(run, step)
    if step < 0 or not path.is_file() or path.is_symlink():
        raise HTTPException(404)
    return _attachment(path, f"{run_watcher.name(run)}-{step:06d}.safetensors")


@router.get("/download/{run_id}/peft")
def peft(run_id: str) -> FileResponse:
    """Serve the finished adapter of a run in the format of PEFT and diffusers."""
    run = or_404(lambda: runs.find(run_id))
    path = _checked(run.folder / "peft", "pytorch_lora_weights.safetensors", ADAPTER)
    return _attachment(path, path.name)


@router.get("/download/kept/{file}")
def kept_adapter(file: str) -> FileResponse:
    """Serve an adapter file that was dropped on the page or written by a tool."""
    return _attachment(_checked(paths.adapters(), file, ADAPTER), file)


@router.get("/download/{run_id}/{file}")
def adapter(run_id: str, file: str) -> FileResponse:
    """Serve the finished adapter of a run."""
    run = or_404(lambda: runs.find(run_id))
    return _attachment(_checked(run.folder, file, ADAPTER), file)


@router.get("/backup/project/{name}")
def project_backup(name: str) -> FileResponse:
    """Make a backup of a project, and serve it."""
    return made_zip(f"{name}.zip", lambda file: backup.write_project(name, file))


@router.get("/backup/run/{run_id}")
def run_backup(run_id: str) -> FileResponse:
    """Make a backup of a run, and serve it."""
    return made_zip(f"{run_id}.zip", lambda file: backup.write_run(runs.find(run_id), file))


def made_zip(name: str, write: Callable[[Path], None]) -> FileResponse:
    """Serve a zip that is written for this request and deleted once it is sent."""
    paths.uploads().mkdir(parents=True, exist_ok=True)
    file = paths.uploads() / f"{secrets.token_hex(8)}.zip"
    or_404(lambda: write(file))
    audit.record("download", what=name)
    done = BackgroundTask(file.unlink, missing_ok=True)
    return FileResponse(file, media_type="application/zip", filename=name, headers=FRESH, background=done)


def _attachment(path: Path, name: str) -> FileResponse:
    audit.record("download", what=name)
    return FileResponse(path, media_type="application/octet-stream", filename=name, headers=FRESH)


def _checked(folder: Path, name: str, pattern: re.Pattern[str]) -> Path:
    path = folder / name
    if not pattern.fullmatch(name) or not path.is_file() or path.is_symlink():
        raise HTTPException(404)
    return path


def or_404(find: Callable[[], Result]) -> Result:
    """Return what is found.

    Raises:
        HTTPException: 404 with its sentences, in place of a `UserError`.
    """
    try:
        return find()
    except UserError as error:
        raise HTTPException(404, str(error)) from None
