"""Check runs, adapters and datasets for damage: by the checksums taken when they were written, and by reading them.

What can be computed again is repaired on request. What a person made is never changed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainer import paths, runs, storage
from trainer.adapter_files import safetensors_reader
from trainer.data import dataset, image_stats, images, originals, sealed_json
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run, View, checkpoints, events

DATA_SUM = "sshs_model_hash"  # in the metadata of adapters: the checksum that other programs know them by


@dataclass(frozen=True)
class Finding:
    """A sentence about one file, given by its path in the home folder; `repair` computes it again if that is possible.

    A `note` is no damage, but something that its owner should know.
    """

    file: str
    message: str
    repair: Callable[[], object] | None = None
    note: bool = False


def check() -> Iterator[Finding]:
    """Check everything in the home folder, and yield what is wrong as it is found."""
    for run in runs.all_runs():
        yield from _check_run(runs.look(run))
    for file in sorted(paths.adapters().glob("*.safetensors")):
        yield from _check_adapter(file)
    for name in dataset.names():
        yield from check_dataset(paths.datasets() / name)


def _finding(path: Path, message: str, repair: Callable[[], object] | None = None, *, note: bool = False) -> Finding:
    file = path.relative_to(paths.home()).as_posix()
    return Finding(file, f"{file}: {message}", repair, note)


# Runs -----------------------------------------------------------------------------------------------------------


def _check_run(view: View) -> Iterator[Finding]:
    run, state = view.run, view.state
    if view.status in runs.ACTIVE:
        yield _finding(run.folder, _("This run is active and was not checked."), note=True)
        return
    try:
        run.config()
    except UserError as error:
        yield _finding(run.config_file, f"{error.message} {error.remedy}")
    if run.log.exists() and (lines := events.unreadable(run.log)):
        yield _finding(run.log, _("Lines that cannot be read: {number}. They are left out.", number=lines))
    yield from _check_checkpoints(run, state)
    for preview in state.previews:
        path = run.folder / "previews" / Path(preview.file).name
        yield from _compare(path, preview.sha256, _can_be_decoded, _("Restore it from a backup."))
    for file in {state.export: ""} | state.sha256 if state.export else ():
        yield from _check_result(run, state, file)


def _check_checkpoints(run: Run, state: events.State) -> Iterator[Finding]:
    folders = checkpoints.folders(run)
    for folder in folders:
        remedy = _("An older checkpoint is used in its place, or the run starts again.")
        for name in checkpoints.damaged(folder):
            yield _finding(folder / name, f"{_('It is damaged or missing.')} {remedy}")
    newest = max((checkpoint.step for checkpoint in state.checkpoints), default=0)
    if newest and newest not in [int(folder.name) for folder in folders]:
        folder = run.folder / checkpoints.FOLDER / f"{newest:06d}"
        yield _finding(folder, f"{_('It is missing.')} {_('Restore it from a backup.')}")


def _check_result(run: Run, state: events.State, name: str) -> Iterator[Finding]:
    """Check an adapter file or the settings of a run that has finished."""
    path, newest = run.folder / name, checkpoints.folders(run)[-1:]
    remedy = _("Restore it from a backup.")
    if path == run.config_file:
        remedy = _("If nobody has changed it, restore it from a backup.")
    elif newest and checkpoints.is_intact(newest[0]) and int(newest[0].name) == state.step:
        remedy = _("Resume the run: its last checkpoint is whole, and the file is written again.")
    if run.folder.resolve() in path.resolve().parents:  # the log may come from anywhere
        yield from _compare(path, state.sha256.get(name, ""), _is_adapter, remedy)


def _compare(path: Path, checksum: str, is_readable: Callable[[Path], bool], remedy: str) -> Iterator[Finding]:
    """Compare a file with its checksum; one of an older version, without a checksum, is read."""
    if not storage.is_regular_file(path):
        yield _finding(path, f"{_('It is missing.')} {remedy}")
    elif checksum and storage.sha256(path) != checksum:
        yield _finding(path, f"{_('It is not what was written: its checksum is another one.')} {remedy}")
    elif not checksum and not is_readable(path):
        yield _finding(path, f"{_('It cannot be read.')} {remedy}")


def _can_be_decoded(path: Path) -> bool:
    try:
        images.upright(path.read_bytes())
    except UserError:
        return False
    return True


def _is_adapter(path: Path) -> bool:
    return not list(_check_adapter(path))


def _check_adapter(path: Path) -> Iterator[Finding]:
    """Read an adapter file; one that Limner wrote is also compared with the checksum in its metadata."""
    try:
        file = safetensors_reader.read(path)
        if "limner.version" in file.metadata:  # other programs copy metadata to files that they change
            safetensors_reader.check_sum(file, DATA_SUM)
    except UserError as error:
        yield _finding(path, f"{error.message} {_('Restore it from a backup.')}")


# Datasets -------------------------------------------------------------------------------------------------------


def check_dataset(folder: Path) -> Iterator[Finding]:
    """Check the images and masks of a dataset, and what is kept in its cache."""
    recorded = originals.known(folder)
    present = {path.name: path for path in dataset.image_files(folder)}
    for name in sorted(recorded.keys() | present.keys()):
        yield from _check_image(folder / name, recorded.get(name))
        mask = dataset.mask_file(folder / name)
        if storage.is_regular_file(mask) and not _can_be_decoded(mask):
            yield _finding(mask, f"{_('It cannot be read as an image.')} {_('Restore it from a backup.')}")
    repair = partial(record, folder)
    if not originals.is_readable(folder):
        yield _finding(originals.file(folder), _("The checksums of the images cannot be read."), repair)
    elif unrecorded := present.keys() - recorded.keys():
        message = _("Images without a checksum: {number}.", number=len(unrecorded))
        yield _finding(originals.file(folder), message, repair, note=True)
    yield from _check_cache(folder)


def record(folder: Path, *, forget_missing: bool = False) -> None:
    """Record the images of a dataset as they are now; a damaged one keeps the checksum that it should have."""
    with dataset.upload_lock(folder):
        originals.record_as_they_are(folder, dataset.image_files(folder), forget_missing=forget_missing)


def _check_image(path: Path, original: originals.Original | None) -> Iterator[Finding]:
    state = original.compare(path) if original else "edited"
    if state == "missing":
        remedy = _("Restore it from a backup; if you removed it yourself, run this again with --accept.")
        yield _finding(path, f"{_('It is missing.')} {remedy}")
    elif state == "damaged":
        message = _("It is damaged: its content has changed, but not its date.")
        yield _finding(path, f"{message} {_('Restore it from a backup.')}")
    elif state == "edited" and not _can_be_decoded(path):
        yield _finding(path, f"{_('It cannot be read as an image.')} {_('Restore it from a backup.')}")


def _check_cache(folder: Path) -> Iterator[Finding]:
    """Check what is computed from the images: all of it can be computed again, mostly when it is next needed."""
    cache = folder / paths.CACHE
    damaged = [path for path in cache.glob("*.safetensors") if not _is_whole(path)]
    damaged += [path for path in (cache / "thumbnails").glob("*.webp") if not _can_be_decoded(path)]
    damaged += [path for path in (cache / "micro.json",) if sealed_json.is_damaged(path)]
    message = _("It is damaged, but can be computed again.")
    for path in sorted(damaged):
        yield _finding(path, message, partial(storage.remove, path))
    measurements = cache / image_stats.FILE
    if sealed_json.is_damaged(measurements):
        yield _finding(measurements, message, partial(_measure_again, folder))


def _is_whole(path: Path) -> bool:
    try:
        safetensors_reader.check_sum(safetensors_reader.read(path))
    except UserError:
        return False
    return True


def _measure_again(folder: Path) -> None:
    storage.remove(folder / paths.CACHE / image_stats.FILE)
    image_stats.measure_missing(folder)
