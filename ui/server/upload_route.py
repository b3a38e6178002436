"""Routes that receive files: each upload goes into a folder of its own, which is deleted at once if it is cut off.

Images are sent to the address of their project and are taken in there, whatever the page does meanwhile. The other
route takes the place of Gradio's, which leaves what was cut off on the disk, keeps all files of an upload open, refuses
all of them because of the name of one, and answers with paths of this machine.
"""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from gradio.routes import file_upload_statuses
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from trainer import paths, storage
from trainer.data import dataset, sandbox
from trainer.errors import UserError
from trainer.i18n import _
from ui.server.request_body import IMAGES, UPLOAD
from ui.state import page_memory, pending_uploads, projects
from ui.widgets.handlers import sentence

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

router = APIRouter()
MAX_FILES = 1000  # of an upload; the page divides larger ones
NAME_BYTES = 160  # of a file's name without its extension
TRACKED = 30.0  # seconds after which the progress of an upload is forgotten, if no page asked for it
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')


@router.post(UPLOAD)
async def upload(request: Request, upload_id: str = "") -> Response:
    """Receive files, and return where they are as a list of paths; the page passes these on to be imported."""
    if upload_id:
        file_upload_statuses.track(upload_id)
    try:
        files = await _receive(request, upload_id)
    except UserError as error:
        return PlainTextResponse(f"{error.message} {error.remedy}", 400)
    except ClientDisconnect:
        return Response(status_code=400)  # to nobody
    finally:
        if upload_id:
            file_upload_statuses.set_done(upload_id)
            asyncio.get_running_loop().call_later(TRACKED, file_upload_statuses.stop_tracking, upload_id)
    return JSONResponse([pending_uploads.public_path(file) for file, _name in files])


@router.post(IMAGES)
async def add_images(request: Request, project: str = "") -> Response:
    """Receive images and captions for a project, and take them in; returns what became of them, and their project."""
    try:
        files = await _receive(request)
    except ClientDisconnect:
        return Response(status_code=400)  # to nobody
    except UserError as error:
        return JSONResponse({"project": "", "report": sentence(error), "bad": True})
    return JSONResponse(await asyncio.to_thread(_add, project, files))


def _add(project: str, files: Sequence[tuple[Path, str]]) -> dict[str, object]:
    """Take in files under the names that the user knows, and delete what was sent."""
    try:
        if project:
            projects.folder(project)
        project = projects.for_upload(project)
        folder = projects.folder(project)
        is_new = project.startswith(projects.FIRST) and not dataset.image_files(folder)  # see `projects.for_upload`
        sources = [(name, file) for file, name in files]
        report = sandbox.add(folder, sources, keep_location=page_memory.keeps_location())
    except Exception as error:
        return {"project": "", "report": sentence(error), "bad": True}
    finally:
        pending_uploads.discard([file for file, _name in files])
    text = report.sentence()
    if is_new and report.added:
        text += " " + _("They are in the project {project}.", project=project)
    trigger = page_memory.answer(project, "trigger")
    return {"project": project, "report": text, "bad": bool(report.refused), "trigger": trigger}


async def _receive(request: Request, upload_id: str = "") -> list[tuple[Path, str]]:
    """Write the files of a multipart body into a new folder, which goes if they do not all arrive.

    Returns:
        The path of each, and the name that it was sent under.

    Raises:
        UserError: it is not such a body, damaged, or has too many files.
        ClientDisconnect: it was canceled.
    """
    folder = await asyncio.to_thread(pending_uploads.create_folder)
    try:
        return await _receive_into(folder, request, upload_id)
    except BaseException:  # also what the middleware refuses
        pending_uploads.discard_folder(folder)
        raise


async def _receive_into(folder: Path, request: Request, upload_id: str) -> list[tuple[Path, str]]:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UserError("This is not an upload of files.", "Send it as multipart/form-data.")
    parts = _Parts(folder, upload_id)
    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks())
        async for chunk in request.stream():
            if chunk:
                await asyncio.to_thread(parser.write, chunk)
    except FormParserError:
        raise _damaged() from None
    except OSError:
        raise UserError("The upload could not be stored.", "Check the free disk space of the server.") from None
    finally:
        parts.close()
    if not parts.is_complete:
        raise _damaged()
    return list(zip(parts.files, parts.names, strict=True))


def _damaged() -> UserError:
    return UserError("The upload did not arrive whole.", "Try again.")


class _Parts:
    """Parts of a multipart body while it arrives: those with a file name become files, one open at a time."""

    def __init__(self, folder: Path, upload_id: str) -> None:
        self.files: list[Path] = []
        self.names: list[str] = []
        self.is_complete = False
        self._folder, self._upload_id = folder, upload_id
        self._name = ""  # of the file, as Gradio's page knows it
        self._header, self._value = b"", b""
        self._disposition = b""
        self._file: BinaryIO | None = None

    def callbacks(self) -> "MultipartCallbacks":
        """Return what the parser calls, by its names for it."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._write,
            "on_part_end": self.close,
            "on_end": self._end,
        }

    def close(self) -> None:
        """Close the file that is being written."""
        if self._file:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._header, self._value, self._disposition = b"", b"", b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _open(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"filename" not in options:
            return
        if len(self.files) == MAX_FILES:
            raise UserError(
                "An upload may have at most {number} files.", "Upload fewer at a time, or a .zip.", number=MAX_FILES
            )
        self._name = options[b"filename"].decode(errors="replace").replace("%22", '"')  # as browsers write a quote
        path = self._folder / str(len(self.files)) / file_name(self._name)
        path.parent.mkdir()
        self._file = storage.open_passing(path)
        self.files.append(path)
        self.names.append(self._name)

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._file:
            self._file.write(data[start:end])
            if self._upload_id:
                file_upload_statuses.append(self._upload_id, self._name, data[start:end])

    def _end(self) -> None:
        self.is_complete = True


def file_name(name: str) -> str:
    """Return the name of an uploaded file as it is stored: the user's as far as every system allows it."""
    path = PurePosixPath(_UNSAFE.sub("_", name.replace("\\", "/")).strip(" ./"))
    stem = path.stem.encode(errors="replace")[:NAME_BYTES].decode(errors="ignore").strip(" .")
    suffix = path.suffix if len(path.suffix.encode(errors="replace")) <= 16 else ""
    if not stem or paths.is_device(stem):
        stem = f"file{stem}"
    return stem + suffix
