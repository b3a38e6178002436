"""Generate regularization images: what the base model alone shows of a class, as a dataset with captions."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer import storage
from trainer.config import PictureConfig
from trainer.data import dataset
from trainer.data.captions import caption_file, one_line, source
from trainer.errors import UserError
from trainer.sampling import png_info
from trainer.sampling.sampler import Sampler

PREFIX = "generated-"  # of the names of images, so that none is taken for one of the user's


def file_of(folder: Path, number: int) -> Path:
    """Return the path of the image of this number, from 1 on, in a dataset."""
    return folder / f"{PREFIX}{number:04}.png"


def generate(folder: Path, requests: Sequence[PictureConfig]) -> Iterator[Path]:
    """Generate the images of a dataset that are not there yet, and yield the path of each once it is written.

    Each has its prompt as caption, which is written first, so that an image without one was left so by the user.

    Raises:
        UserError: the dataset has only other images, or one that was generated with other settings.
    """
    with dataset.upload_lock(folder):
        _check(folder, requests)
        sampler = Sampler()
        for request in requests:
            path = Path(request.out)
            if path.exists():
                continue
            image = sampler.generate(request)
            if source(path) is None:
                with dataset.captions_lock(folder):
                    storage.write(caption_file(path), one_line(request.prompt) + "\n")
            png_info.write(path, image, request)
            yield path


def _check(folder: Path, requests: Sequence[PictureConfig]) -> None:
    images = dataset.image_files(folder)
    if images and not any(image.name.startswith(PREFIX) for image in images):
        raise UserError(
            "The dataset {name!r} has images of its own.",
            "Choose another name for the regularization images.",
            name=folder.name,
        )
    for request in requests:
        path = Path(request.out)
        if path.exists() and not png_info.matches(path, request):
            raise UserError(
                "{name} was generated with other settings.",
                "Repeat those, or choose another name for the regularization images.",
                name=path.name,
            )
