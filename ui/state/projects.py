"""Projects: the dataset folders that the page and the API work on, found and created by name."""

from pathlib import Path

from trainer import paths
from trainer.data import dataset
from trainer.errors import UserError

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


def create(name: str) -> None:
    """Create a new, empty project.

    Raises:
        UserError: the name is taken or not allowed.
    """
    if name in dataset.names():
        raise UserError("There is already a project {name!r}.", "Choose another name.", name=name)
    dataset.create(paths.check_name(name, "project"))


def for_upload(project: str | None) -> str:
    """Return the project that uploaded images go to: a new one if none is open or the open one is an example."""
    if project and not project.startswith(SHIPPED):
        return project
    names, number = dataset.names(), 1
    name = FIRST
    while name in names:
        number += 1
        name = f"{FIRST}-{number}"
    dataset.create(name)
    return name


def find_image(project: str | None, name: str) -> Path:
    """Return the path of an image by its name.

    Raises:
        UserError: there is no such project, or it has no such image.
    """
    for path in dataset.image_files(folder(project)):
        if path.name == name:
            return path
    raise UserError("This image is no longer in the dataset.", "Reload the page to see the current images.")
