"""Projects: the dataset folders that the page and the API work on, found and created by name."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainer import paths, runs, storage
from trainer.data import caption_edits, dataset
from trainer.data.captions import clean, one_line, read_text
from trainer.errors import UserError, explaining_files_in_use
from ui.state import order, page_memory
from ui.state.order import UNKNOWN, Moment

FIRST = "my-pictures"  # name of the project that is created for the first upload
SHIPPED = "example-"  # prefix of the datasets that are part of the distribution


def folder(project: str | None) -> Path:
    """Return the folder of a project.

    Raises:
        UserError: there is no such project.
    """
    if not project:
        raise UserError("There is no project yet.", "Choose New project above and give it a name.")
    path = paths.datasets() / paths.check_name(project, "project")
    if not path.is_dir():
        raise UserError(
            "The project {project!r} no longer exists.", "Reload the page to see the current projects.", project=project
        )
    return path


def choices() -> list[tuple[str, str]]:
    """Return (title, name) of all projects, sorted by title."""
    return sorted(((title(name), name) for name in dataset.names()), key=lambda choice: choice[0].casefold())


def title(name: str) -> str:
    """Return what a project is called; its folder has the name."""
    return page_memory.answer(name, "title")


def create(title: str) -> str:
    """Create a new, empty project, and return the name of its folder, which is derived from the title.

    Raises:
        UserError: there is no title, or a project has it already.
    """
    title = _checked_title(title)
    name = _free_name(paths.safe_name(title, "project"))
    dataset.create(name)
    page_memory.remember(name, "title", title)
    return name


def _free_name(name: str) -> str:
    """Return the name, numbered if a project has or had it: answers and runs are kept by it."""
    known = {taken.casefold() for taken in (*dataset.names(), *page_memory.answered())}
    return next(candidate for candidate in paths.numbered(name) if candidate.casefold() not in known)


def rename(name: str, title: str) -> None:
    """Give a project another title; its folder keeps its name, so that its runs still find their images.

    Raises:
        UserError: there is no such project, no title, or another project has it.
    """
    folder(name)
    page_memory.remember(name, "title", _checked_title(title, name))


def _checked_title(title: str, of: str = "") -> str:
    title = one_line(title)[:100]
    if not title:
        raise UserError("The project has no name yet.", "Type one.")
    if any(title.casefold() == other.casefold() and name != of for other, name in choices()):
        raise UserError("There is already a project {name!r}.", "Choose another name.", name=title)
    return title


def delete(name: str) -> None:
    """Move a project to the bin, where it stays for a week; its runs stay.

    Raises:
        UserError: there is no such project, a run trains on it, or another program has one of its files open.
    """
    path = folder(name)
    for run in runs.all_runs():
        if runs.look(run).status not in runs.ACTIVE:
            continue
        if any(name in (subject.dataset, subject.regularization) for subject in run.config().taught):
            raise UserError("A run is training on this project.", "Stop it first, or wait until it has ended.")
    with dataset.captions_lock(path):
        pass  # what is being written is complete
    with explaining_files_in_use():
        storage.move_to_bin(path, paths.datasets())


def deleted() -> list[Path]:
    """Return the projects in the bin, the one deleted last first."""
    return storage.binned(paths.datasets())


def restore_last() -> str:
    """Bring back the project that was deleted last, and return its name.

    Raises:
        UserError: there is none, its name is taken by another project, or another program has one of its files open.
    """
    binned = deleted()
    if not binned:
        raise UserError("There is no deleted project.", "Nothing has to be brought back.")
    name = binned[0].stem
    if name in dataset.names() or title(name).casefold() in {other.casefold() for other, _name in choices()}:
        raise UserError("There is already a project {name!r}.", "Rename that one first.", name=title(name))
    with explaining_files_in_use():
        storage.replace(binned[0], paths.datasets() / name)
    return name


def for_upload(project: str | None) -> str:
    """Return the project that uploaded images go to: a new one if none is open or the open one is an example."""
    if project and not project.startswith(SHIPPED):
        return project
    name = _free_name(FIRST)
    dataset.create(name)
    return name


def find_image(project: str | None, name: str) -> Path:
    """Return the path of an image by its name.

    Raises:
        UserError: there is no such project, or it has no such image.
    """
    if path := dataset.find_image(folder(project), name):
        return path
    raise UserError("This image is no longer in the dataset.", "Reload the page to see the current images.")


def remaining(project: str, names: Sequence[str]) -> list[str]:
    """Return which of these images are still in a project.

    Raises:
        UserError: the project does not exist.
    """
    present = {path.name for path in dataset.image_files(folder(project))}
    return [name for name in names if name in present]


def remove_images(project: str, names: Sequence[str]) -> list[str]:
    """Move those that are `remaining` to the bin, with their captions; returns their names."""
    left = remaining(project, names)
    if left:
        dataset.remove(*(folder(project) / name for name in left))
    return left


def save_caption(image: Path, text: str, base: object = None, typed: Moment = UNKNOWN) -> str | None:
    """Save the caption of an image that was typed over `base`, at a moment of its page.

    Returns:
        The caption that another page has written since, if it differs; then nothing is saved.
    """
    text = text[:10_000]
    with dataset.captions_lock(image.parent):
        present = read_text(image)
        project, name, read = image.parent.name, image.name, (clean(str(base)), clean(text))
        if base is not None and present not in read and not order.is_own(typed, project, name, present):
            return present
        order.edit(typed, project, name, clean(text))
        dataset.write_caption(image, text)
    return None


@contextmanager
def changing_captions(project: str, sent: Moment, names: Collection[str] | None = None) -> Iterator[set[str]]:
    """Lock captions while an act of a page changes those of some or all images; yields those that it has typed since.

    The changed ones are noted as written by this page, so that typing over them is no conflict with another page.
    """
    path, some = folder(project), frozenset(names or ())

    def read() -> dict[str, str]:
        images = dataset.image_files(path)
        return {image.name: read_text(image) for image in images if names is None or image.name in some}

    with dataset.captions_lock(path):
        before = read()
        try:
            yield order.edited_later(sent, project)
        finally:
            for name, caption in read().items():
                if caption != before.get(name):
                    order.edit(sent, project, name, caption)


def change_captions(
    project: str, sent: Moment, change: caption_edits.Change, title: str, names: Collection[str] | None = None
) -> int:
    """Change all captions or those of some images, but none that was typed after the page had sent this.

    Returns:
        How many became different.
    """
    with changing_captions(project, sent, names) as typed:
        edits = caption_edits.preview(folder(project), change, names, without=typed)
        caption_edits.apply(folder(project), edits, title)
    return len(edits)
