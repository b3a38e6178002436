"""The files that the page serves: thumbnails, previews, tried-out pictures, finished adapters. Nothing else.

Each route takes names, never paths, checks them, and answers with a type of our own choosing. Nothing is opened to
Gradio's own file route.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

from trainer import paths, runs, storage
from trainer.data import dataset, images
from trainer.errors import UserError

router = APIRouter()
UPLOADS = 4 * 2**30  # bytes that may lie where uploads wait to be taken in
FORGOTTEN = 3600.0  # seconds after which an upload that nobody took in is removed
Found = TypeVar("Found")
PREVIEW = re.compile(r"\d{1,9}_\d{1,3}\.png")
PICTURE = re.compile(r"[0-9a-f]{32}\.png")
ADAPTER = re.compile(r"[\w-]{1,64}\.safetensors")
PRIVATE = {"Cache-Control": "private, max-age=3600"}
FRESH = {"Cache-Control": "private, no-store"}


def pictures() -> Path:
    """Folder of the pictures made while trying out."""
    return paths.outputs() / ".pictures"


def kept() -> Path:
    """Folder of adapter files that were dropped on the page or made by a tool."""
    return paths.outputs() / ".adapters"


def checkpoint_file(run: runs.Run, step: int) -> Path:
    """The adapter in a checkpoint."""
    return run.folder / "checkpoints" / f"{step:06d}" / "adapter.safetensors"


def upload_room() -> int:
    """Bytes that uploads may take at present: some of the disk stays free, and not too many wait."""
    waiting = sum(size for _, size, _ in _waiting())
    return max(0, min(storage.usable_space(paths.outputs()), UPLOADS - waiting))


def forget_uploads(older: float = FORGOTTEN) -> None:
    """Remove uploads that were cut off, or that no page took in, `older` seconds ago or more."""
    for path, _, written in _waiting():
        if time.time() - written >= older:
            path.unlink(missing_ok=True)


def _waiting() -> Iterator[tuple[Path, int, float]]:
    """Each upload that is not taken in: where it lies, its size, when it was written last."""
    for path in paths.uploads().rglob("*"):
        with suppress(OSError):  # it was taken in at this moment
            if path.is_file():
                stat = path.stat()
                yield path, stat.st_size, stat.st_mtime


@router.get("/media/dataset/{name}/{picture}")
def thumbnail(name: str, picture: str) -> FileResponse:
    """A small version of a picture of a data set, made by ourselves from its pixels."""
    found = _or_404(lambda: find_picture(name, picture))
    return _small(found.parent, found)


@router.get("/media/mask/{name}/{picture}")
def mask(name: str, picture: str) -> FileResponse:
    """A small version of the mask of a picture of a data set."""
    found = _or_404(lambda: find_picture(name, picture))
    return _small(found.parent, dataset.mask_file(found))


def _small(folder: Path, picture: Path) -> FileResponse:
    try:
        return FileResponse(images.thumbnail(folder, picture), media_type="image/webp", headers=PRIVATE)
    except (UserError, OSError):
        raise HTTPException(404) from None


def find_picture(name: str, picture: str) -> Path:
    """A picture of a data set by its name.

    Raises:
        UserError: there is no such data set, or no such picture in it.
    """
    folder = paths.datasets() / paths.check_name(name, "data set")
    for path in dataset.image_files(folder) if folder.is_dir() else ():
        if path.name == picture:
            return path
    raise UserError("This picture is no longer in the data set.", "Reload the page to see what is there.")


@router.get("/media/run/{run_id}/{preview}")
def preview(run_id: str, preview: str) -> FileResponse:
    """A preview picture of a run."""
    run = _or_404(lambda: runs.find(run_id))
    path = _checked(run.folder / "previews", preview, PREVIEW)
    return FileResponse(path, media_type="image/png", headers=PRIVATE)


@router.get("/media/picture/{picture}")
def picture(picture: str) -> FileResponse:
    """A picture made while trying out."""
    return FileResponse(_checked(pictures(), picture, PICTURE), media_type="image/png", headers=PRIVATE)


@router.get("/download/{run_id}/checkpoint/{step}")
def checkpoint(run_id: str, step: int) -> FileResponse:
    """The adapter as it was after a step."""
    run = _or_404(lambda: runs.find(run_id))
    path = checkpoint_file(run, step)
    if step < 0 or not path.is_file() or path.is_symlink():
        raise HTTPException(404)
    name = f"{run.config().name}-{step:06d}.safetensors"
    return FileResponse(path, media_type="application/octet-stream", filename=name, headers=FRESH)


@router.get("/download/{run_id}/peft")
def peft(run_id: str) -> FileResponse:
    """The finished adapter of a run in the form of PEFT and diffusers."""
    run = _or_404(lambda: runs.find(run_id))
    path = _checked(run.folder / "peft", "pytorch_lora_weights.safetensors", ADAPTER)
    return FileResponse(path, media_type="application/octet-stream", filename=path.name, headers=FRESH)


@router.get("/download/kept/{file}")
def kept_adapter(file: str) -> FileResponse:
    """A kept file."""
    path = _checked(kept(), file, ADAPTER)
    return FileResponse(path, media_type="application/octet-stream", filename=file, headers=FRESH)


@router.get("/download/{run_id}/{file}")
def adapter(run_id: str, file: str) -> FileResponse:
    """The finished adapter of a run."""
    run = _or_404(lambda: runs.find(run_id))
    path = _checked(run.folder, file, ADAPTER)
    return FileResponse(path, media_type="application/octet-stream", filename=file, headers=FRESH)


def _checked(folder: Path, name: str, pattern: re.Pattern[str]) -> Path:
    path = folder / name
    if not pattern.fullmatch(name) or not path.is_file() or path.is_symlink():
        raise HTTPException(404)
    return path


def _or_404(find: Callable[[], Found]) -> Found:
    try:
        return find()
    except UserError:
        raise HTTPException(404) from None
