"""Back up a project or a run as one zip file, and restore it: under a free name, never over anything.

The zip holds the files in a folder of the project's or run's name, and `limner.json` with their checksums. It is read
in a process with the limits of uploads, and each file is checked for what it has to be before anything gets its name.
"""

import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer import __version__, paths, runs, storage
from trainer.base_models import MICRO, detect
from trainer.data import answers, captions, dataset, images, sandbox, uploads
from trainer.errors import UserError, explain_disk
from trainer.i18n import _
from trainer.runs import Run, checkpoints, events, run_files

CONTENTS = "limner.json"
MAX_CONTENTS = 16 * 2**20
PIECE = 2**20
# Of a project: images, captions and masks beside each other, and a folder of masks. No name starts with a point.
_PROJECT = re.compile(
    r"(masks?/)?[^./\\:*?\"<>|\x00-\x1f][^/\\:*?\"<>|\x00-\x1f]{0,199}\.(png|jpe?g|webp|bmp|txt)", re.I
)
# What zipfile raises for damaged files; OSError for an offset that lies before the file.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OSError,
    struct.error,
)


class Contents(BaseModel):
    """What is in a backup: its kind, the name of the project or run, the checksum of each file, and the answers."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["project", "run"]
    name: str = Field(max_length=64)
    program: str = Field("", max_length=40)
    sha256: dict[str, str] = Field(max_length=3 * uploads.MAX_ENTRIES)
    answers: dict[str, str] = Field(default_factory=dict, max_length=100)


@dataclass(frozen=True)
class Restored:
    """What was restored, and under which name."""

    kind: Literal["project", "run"]
    name: str


# Write ----------------------------------------------------------------------------------------------------------


def write_project(name: str, file: Path) -> None:
    """Back up a project: images, captions, masks and answers. A base model is named only if it is no path.

    Raises:
        UserError: there is no such project, or one of its files has a name that not every system can have.
    """
    folder = paths.datasets() / paths.check_name(name, "project")
    if not folder.is_dir():
        raise UserError("There is no project {name!r}.", "Check the name.", name=name)
    own = {key: value for key, value in answers.of(name).items() if key != "base" or _is_public(value)}
    with dataset.upload_lock(folder), dataset.captions_lock(folder):
        files = dict(sorted(_project_files(folder)))
        _write(file, Contents(kind="project", name=name, sha256=_checksums(files), answers=own), files)


def _is_public(base: str) -> bool:
    return base == MICRO or detect.is_hub_name(base)


def _project_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for image in dataset.image_files(folder):
        for path in (image, captions.caption_file(image), dataset.mask_file(image)):
            if not storage.is_regular_file(path):
                continue
            name = path.relative_to(folder).as_posix()
            if not _belongs("project", name):
                raise UserError("{name} cannot be the name of a file on every system.", "Rename it.", name=path.name)
            yield name, path


def write_run(run: Run, file: Path) -> None:
    """Back up a run: settings, log, checkpoints, previews and adapter; its dataset and base model are not part of it.

    Raises:
        UserError: it is active.
    """
    if runs.look(run).status in runs.ACTIVE:
        raise UserError("This run is still running.", "Stop it first, or wait until it has ended.")
    found = (path for path in run.folder.rglob("*") if storage.is_regular_file(path))
    files = {path.relative_to(run.folder).as_posix(): path for path in sorted(found)}
    files = {name: path for name, path in files.items() if _belongs("run", name)}
    _write(file, Contents(kind="run", name=run.id, sha256=_checksums(files)), files)


def _checksums(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: storage.sha256(path) for name, path in files.items()}


def _belongs(kind: Literal["project", "run"], name: str) -> bool:
    """Return True if a file of this path can be part of a backup."""
    if kind == "run":
        return run_files.is_any(name)
    return bool(_PROJECT.fullmatch(name)) and not any(paths.is_device(part) for part in PurePosixPath(name).parts)


def _write(file: Path, contents: Contents, files: Mapping[str, Path]) -> None:
    contents = contents.model_copy(update={"program": __version__})

    def fill(target: Any) -> None:  # noqa: ANN401 - an open file
        with zipfile.ZipFile(target, "w", strict_timestamps=False) as archive:  # stored: images are compressed already
            archive.writestr(CONTENTS, contents.model_dump_json(indent=1))
            for name, path in files.items():
                archive.write(path, f"{contents.name}/{name}")

    storage.write_with(file, fill)


# Read -----------------------------------------------------------------------------------------------------------


def restore(file: Path, look: Callable[[str], None] | None = None) -> Restored:
    """Restore a backup in a process of its own, with the limits of uploads; `look` is called with each file's name.

    Raises:
        UserError: it is not a backup, damaged, or holds something that it should not.
    """
    answer, names = sandbox.confined(["trainer.runs.backup"], str(file), look)
    if answer is None:
        raise _refused(_("{name} takes too much memory or time", name=names[-1]))
    return Restored(**answer)


def restore_here(file: Path, look: Callable[[str], None]) -> Restored:
    """Restore a backup in this process.

    Raises:
        UserError: as `restore`.
    """
    look(file.name)
    try:
        archive = zipfile.ZipFile(file)
    except _BROKEN as error:
        if explain_disk(error):
            raise
        raise _refused(_("it is damaged, or not a zip file")) from None
    with archive:
        contents = _read_contents(archive)
        root = paths.outputs() if contents.kind == "run" else paths.datasets()
        root.mkdir(parents=True, exist_ok=True)
        if storage.usable_space(root) < sum(info.file_size for info in archive.infolist()):
            raise UserError("There is not enough space on the disk for this backup.", "Free some space.")
        name = _create(root, contents, partial(_fill, archive, contents, look))
    return Restored(contents.kind, name)


def _refused(reason: str) -> UserError:
    return UserError("This backup cannot be restored: {reason}.", "Use a file that Limner exported.", reason=reason)


def _read_contents(archive: zipfile.ZipFile) -> Contents:
    """Read and check the list of files.

    Raises:
        UserError: there is none, or the zip does not hold exactly its files, or they are too large or too many.
    """
    infos = {info.filename: info for info in archive.infolist()}
    if CONTENTS not in infos or infos[CONTENTS].file_size > MAX_CONTENTS:
        raise _refused(_("it has no list of its files"))
    try:
        contents = Contents.model_validate_json(_read(archive, infos[CONTENTS], MAX_CONTENTS))
    except ValidationError:
        raise _refused(_("its list of files is damaged")) from None
    if {CONTENTS, *(f"{contents.name}/{name}" for name in contents.sha256)} != infos.keys():
        raise _refused(_("its files are not those of its list"))
    if len(infos) != len(archive.infolist()) or len({name.lower() for name in infos}) != len(infos):
        raise _refused(_("a file is in it twice"))
    for name in contents.sha256:
        if not _belongs(contents.kind, name):
            raise _refused(_("{name} does not belong in it", name=name[-80:]))
    if sum(info.file_size for info in infos.values()) > uploads.MAX_TOTAL:
        raise _refused(_("it is larger than {size} GB when unpacked", size=uploads.MAX_TOTAL // 2**30))
    if contents.kind == "run" and not {"config.toml", "events.jsonl"} <= contents.sha256.keys():
        raise _refused(_("it has no settings or no log"))
    return contents


def _create(root: Path, contents: Contents, fill: Callable[[Path], None]) -> str:
    """Create the folder under the backup's name or, where it is taken, under a similar one; return its name."""
    stem = paths.safe_name(contents.name, contents.kind)
    while True:
        name = dataset.free_stem({path.name.lower() for path in root.iterdir()}, stem)
        try:
            storage.create_folder(root / name, fill)
        except FileExistsError:  # somebody has just taken it
            continue
        return name


def _fill(archive: zipfile.ZipFile, contents: Contents, look: Callable[[str], None], folder: Path) -> None:
    """Unpack all files into a folder that has no name yet, and check them.

    Raises:
        UserError: one of them is damaged, or not what its name says.
    """
    for name, checksum in contents.sha256.items():
        look(PurePosixPath(name).name)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_unsynced(path, _pieces(archive, archive.getinfo(f"{contents.name}/{name}")))
        if storage.sha256(path) != checksum:
            raise _refused(_("{name} is damaged", name=path.name))
        _check(path, name)
    for inner in {path.parent for path in folder.rglob("*")}:
        storage.sync_folder(inner)
    if contents.kind == "run":
        (folder / "ask").mkdir()
        _check_run(Run(folder))
    else:
        answers.keep(folder, contents.answers)


def _pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of a file in a zip, not more than it says and than compression can explain."""
    room, name = min(info.file_size, max(PIECE, info.compress_size * uploads.MAX_RATIO)), info.filename[-80:]
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(_("{name} is compressed in an unknown way", name=name))
    try:
        with archive.open(info) as entry:
            while piece := entry.read(PIECE):
                room -= len(piece)
                if room < 0:
                    raise _refused(_("{name} is too large when unpacked", name=name))
                yield piece
    except _BROKEN as error:
        if explain_disk(error):
            raise
        raise _refused(_("{name} is damaged", name=name)) from None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    data = b""
    for piece in _pieces(archive, info):
        data += piece
        if len(data) > limit:
            raise _refused(_("its list of files is damaged"))
    return data


def _check(path: Path, name: str) -> None:
    """Check that a file is what its name says.

    Raises:
        UserError: it is not, or it is too large.
    """
    suffix, size = path.suffix.lower(), path.stat().st_size
    if (suffix in images.SUFFIXES and size > uploads.MAX_FILE) or (suffix == ".txt" and size > captions.MAX_BYTES):
        raise _refused(_("{name} is too large", name=path.name))
    try:
        if run_files.is_any(name):
            run_files.check(path, name)
        elif suffix in images.SUFFIXES:
            images.upright(path.read_bytes())
    except UserError as error:
        raise _refused(_("{name} is damaged ({reason})", name=path.name, reason=error.message)) from None


def _check_run(run: Run) -> None:
    """Check that the checkpoints of a run are whole, and that its log names no file outside its folder.

    Raises:
        UserError: they are not, or it does.
    """
    for folder in checkpoints.folders(run):
        if not checkpoints.is_intact(folder):
            raise _refused(_("the checkpoint of step {step} is damaged", step=int(folder.name)))
    for event in events.read(run.log)[0]:
        if not all(map(run_files.is_any, run_files.named_by(event))):
            raise _refused(_("its log names other files than those of a run"))


def main() -> None:
    """Restore the backup that standard input names."""
    sandbox.serve(lambda file, look: asdict(restore_here(Path(file), look)))
