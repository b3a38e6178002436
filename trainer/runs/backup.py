"""Back up a project or a run as an ordinary zip. The zip of a project can be uploaded like any other."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import paths, runs, storage
from trainer.data import captions, dataset
from trainer.errors import UserError
from trainer.runs import Run, run_files


def write_project(name: str, file: Path) -> None:
    """Write the images of a project with their captions, as `.txt` files, and their masks.

    Raises:
        UserError: there is no such project.
    """
    folder = paths.datasets() / paths.check_name(name, "project")
    if not folder.is_dir():
        raise UserError("There is no project {name!r}.", "Check the name.", name=name)
    with dataset.upload_lock(folder), dataset.captions_lock(folder):
        files: dict[str, Path | str] = {}
        for image in dataset.image_files(folder):
            files[image.name] = image
            if lines := captions.read_captions(image):
                files[captions.caption_file(image).name] = "\n".join(lines) + "\n"
            mask = dataset.mask_file(image)
            if storage.is_regular_file(mask):
                files[mask.relative_to(folder).as_posix()] = mask
        write_zip(file, name, files)


def write_run(run: Run, file: Path) -> None:
    """Write settings, log, checkpoints, previews and adapter of a run; its dataset and base model are not part of it.

    Raises:
        UserError: it is active.
    """
    runs.check_ended(run)
    contents = (path for path in run.folder.rglob("*") if storage.is_regular_file(path))
    files = {path.relative_to(run.folder).as_posix(): path for path in sorted(contents)}
    write_zip(file, run.id, {name: path for name, path in files.items() if run_files.is_any(name)})


def write_zip(file: Path, folder: str, files: Mapping[str, Path | str | bytes]) -> None:
    """Write a zip with one folder; files are given by their path in it, each as a file here or as its content."""

    def fill(target: Any) -> None:  # noqa: ANN401 - an open file
        with zipfile.ZipFile(target, "w", strict_timestamps=False) as archive:  # stored: images are compressed already
            for name, content in files.items():
                if isinstance(content, Path):
                    archive.write(content, f"{folder}/{name}")
                else:
                    archive.writestr(f"{folder}/{name}", content)

    storage.write_with(file, fill)
