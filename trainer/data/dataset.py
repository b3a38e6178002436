"""A dataset: a folder of images with their captions in `.txt` files beside them; the folder is the only record.

Uses the layout `rin/001.png` + `rin/001.txt` that the tools of the field share, and their names for masks.
"""

import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePath

from filelock import FileLock

from trainer import paths, storage
from trainer.data import images
from trainer.data.captions import FORMS, caption_file, clean, one_line, read_caption, read_text
from trainer.errors import UserError
from trainer.i18n import _

PACKAGED_EXAMPLES = paths.CODE / "trainer" / "examples"  # only in a wheel; a checkout has them in its `datasets/`
MASK = ".mask.png"
MASK_ENDINGS = (".mask", "-masklabel")  # of the stem of a file beside the image, as in kohya and OneTrainer
MASK_FOLDERS = ("mask", "masks")
REPEATED = re.compile(r"(\d{1,4})_(.+)")  # the name of a folder in the form of kohya's scripts


@dataclass(frozen=True)
class Example:
    """One image, as a viewer shows it (`width` x `height` pixels), its caption, and its subject's trigger word."""

    path: Path
    caption: str
    width: int
    height: int
    trigger: str = ""

    @property
    def name(self) -> str:
        """The file's name in its folder."""
        return self.path.name

    def text(self) -> str:
        """Read its caption with its line breaks, each line of which may be trained as a caption of its own."""
        return read_text(self.path) or self.caption


@dataclass(frozen=True)
class Subject:
    """Subject that one dataset teaches: the word that calls it, and how often each image is seen in an epoch.

    `class_word` says what it is, and `regularization` is a dataset of other images of its class; "" = none.
    """

    dataset: str
    trigger: str
    repeats: int = 1
    class_word: str = ""
    regularization: str = ""

    @property
    def caption(self) -> str:
        """Caption of its images that have none: both words, as in DreamBooth (`rin girl`); "" without a class word."""
        return f"{self.trigger} {self.class_word}".strip() if self.class_word else ""


def find_folder(dataset: str) -> Path:
    """Return the folder of a dataset, given by its name under `datasets/` or else by a path.

    Raises:
        UserError: there is no such folder.
    """
    folder = paths.datasets() / dataset
    if not paths.is_name(dataset) or not folder.is_dir():
        folder = Path(dataset).expanduser()
    if not folder.is_dir():
        raise UserError(
            "There is no dataset {name!r}.",
            "Known datasets: {known}. Add images first, or give the path of a folder.",
            name=Path(dataset).name,
            known=", ".join(names()) or _("none yet"),
        )
    return folder


def names() -> list[str]:
    """Return the names of all datasets, sorted."""
    root = paths.datasets()
    if not root.is_dir():
        return []
    return sorted(folder.name for folder in root.iterdir() if folder.is_dir() and paths.is_name(folder.name))


def create(name: str) -> Path:
    """Create the dataset of this name unless it exists, and return its folder."""
    folder = paths.datasets() / paths.check_name(name, "dataset")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_regularization(subjects: Sequence[Subject]) -> list[tuple[Example, ...]]:
    """Read the regularization images of each subject that has any; those without a caption have the class word as it.

    Raises:
        UserError: there is no such folder, or it has no images.
    """
    pools = []
    for subject in subjects:
        if not subject.regularization:
            continue
        folder = find_folder(subject.regularization)
        pools.append(read(folder, caption=subject.class_word))
        if not pools[-1]:
            raise UserError(
                "The dataset {name!r} of regularization images is empty.",
                "Add images to it, or train without regularization images.",
                name=folder.name,
            )
    return pools


def read(folder: Path, trigger: str = "", caption: str = "") -> tuple[Example, ...]:
    """Read all readable examples of a dataset, in the order of their names, for a trigger word.

    Those of a part that is seen more often are there more than once. `caption` is that of images without one.
    """
    examples = []
    for part in parts(folder):
        for path in image_files(part.folder):
            size = images.display_size(path)
            if size is not None:
                example = Example(path, read_caption(path) or part.caption or caption, *size, trigger)
                examples += [example] * part.repeats
    return tuple(examples)


@dataclass(frozen=True)
class Part:
    """A folder of images that is a dataset or one of its parts: how often they are seen, and what they show.

    `caption` is that of images without one.
    """

    folder: Path
    repeats: int = 1
    caption: str = ""


def parts(folder: Path) -> list[Part]:
    """Return the parts of a dataset: the folder itself, or those in it if it has the form of kohya's scripts.

    There, images lie in folders such as `10_kim woman`: the number says how often they are seen beside those of other
    folders, and the rest is the caption of images that have none.
    """
    repeated = [
        Part(path, int(match[1]), one_line(match[2].replace("_", " ")))
        for path in subfolders(folder)
        if (match := REPEATED.fullmatch(path.name)) and int(match[1])
    ]
    if not repeated or image_files(folder):
        return [Part(folder)]
    shared = math.gcd(*(part.repeats for part in repeated))
    return [replace(part, repeats=part.repeats // shared) for part in repeated]


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder in the order of their names; links are not followed."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return [folder / name for name in sorted(names, key=os.path.normcase)]


def read_subjects(subjects: Sequence[Subject]) -> tuple[Example, ...]:
    """Read the examples of each subject, in turn, as often as an epoch has them.

    Raises:
        UserError: a dataset is not there, or has no images.
    """
    examples: list[Example] = []
    for subject in subjects:
        folder = find_folder(subject.dataset)
        own = read(folder, subject.trigger, subject.caption)
        if not own:
            raise UserError(
                "There are no images in the dataset {name!r}.",
                "Add at least 5; 10 to 30 work best.",
                name=folder.name,
            )
        examples += own * subject.repeats
    return tuple(examples)


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a dataset in the order of their names; masks are left out, links are not followed."""
    return _images(folder, masks=False)


def find_image(folder: Path, name: str) -> Path | None:
    """Return the image file of a dataset by its name, without listing the folder; None if it has no such image."""
    path = folder / name
    try:
        is_here = path.parent == folder and path.name == name and storage.is_regular_file(path)
    except (OSError, ValueError):  # a name that no file can have
        return None
    return path if is_here and _is_image_name(name) and not is_mask(name) else None


def mask_files(folder: Path) -> list[Path]:
    """Return the masks that lie beside the images of a dataset, in the order of their names."""
    return _images(folder, masks=True)


def _images(folder: Path, *, masks: bool) -> list[Path]:
    with os.scandir(folder) as entries:  # tells what is a file without looking each up
        names = [
            entry.name
            for entry in entries
            if _is_image_name(entry.name) and is_mask(entry.name) is masks and entry.is_file(follow_symlinks=False)
        ]
    return [folder / name for name in sorted(names, key=os.path.normcase)]


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(images.SUFFIXES) and not name.startswith(".")


def is_mask(name: str) -> bool:
    """Tell by its name whether a file is the mask of another one."""
    return os.path.splitext(name)[0].lower().endswith(MASK_ENDINGS)


def masked_stem(path: PurePath) -> str:
    """Return the stem of the image that a mask named by `MASK_ENDINGS` belongs to."""
    for ending in MASK_ENDINGS:
        if path.stem.lower().endswith(ending):
            return path.stem[: -len(ending)]
    return path.stem


def mask_file(image: Path) -> Path:
    """Return the path of an image's mask, white where it is to be learned; without one, where it would be written.

    Read are `name.mask.png` and `name-masklabel.png` beside the image, and `name.png` in a folder `mask` or `masks`.
    """
    default = image.with_suffix(MASK)
    others = [image.with_name(f"{image.stem}-masklabel.png")]
    others += [image.parent / folder / f"{image.stem}.png" for folder in MASK_FOLDERS]
    return next((path for path in (default, *others) if storage.is_regular_file(path)), default)


def masked(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Return those of the image files of a dataset that have a mask, with one look at its folders."""
    stems = {masked_stem(mask).lower() for mask in mask_files(folder)}
    for name in MASK_FOLDERS:
        if (folder / name).is_dir():
            stems |= {Path(entry).stem.lower() for entry in os.listdir(folder / name)}
    return [file for file in files if file.stem.lower() in stems and mask_file(file).is_file()]


def read_mask(image: Path) -> bytes:
    """Read the mask of an image as it is stored; empty if there is none, or a link in its place."""
    path = mask_file(image)
    return path.read_bytes() if storage.is_regular_file(path) else b""


def free_stem(taken: set[str], stem: str) -> str:
    """Return the stem, numbered if needed so that it is not one of those taken, which are in lower case."""
    return next(candidate for candidate in paths.numbered(stem) if candidate.lower() not in taken)


def captions_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock for changing captions or moving images of a dataset: one thread of one process at a time.

    It is reentrant. Nobody holds it for long, so that a caption being typed never waits.
    """
    return _lock(folder, "captions")


def upload_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock for adding images to a dataset, from the first to the last."""
    return _lock(folder, "upload")


@contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    lock = FileLock(paths.make_cache(folder) / f"{name}.lock", is_singleton=True)
    storage.take_lock(lock)
    try:
        yield
    finally:
        lock.release()


def write_caption(image: Path, text: str) -> None:
    """Save the caption of an image with its line breaks, as `captions.read_text` returns it.

    Raises:
        UserError: the image is gone.
    """
    check_present(image)
    with captions_lock(image.parent):
        storage.write(caption_file(image), clean(text) + "\n")


def check_present(image: Path) -> None:
    """Check that an image is still there.

    Raises:
        UserError: it is gone.
    """
    if not image.is_file():
        raise UserError("{name} is no longer in this dataset.", "Reload the page.", name=image.name)


def digest(examples: Sequence[Example], *, by_line: bool = False) -> str:
    """Return the SHA-256 over the images' bytes, captions and masks: the same wherever the dataset lies.

    `by_line`: line breaks count, as each line of a caption file is a caption.
    """
    total = hashlib.sha256()
    for example in examples:
        total.update(hashlib.sha256(example.path.read_bytes()).digest())
        caption = example.caption
        if by_line:
            caption = example.text()
        total.update(hashlib.sha256(caption.encode()).digest())
        if mask := read_mask(example.path):
            total.update(hashlib.sha256(mask).digest())
    return total.hexdigest()


# Removing and bringing back -------------------------------------------------------------------------------------


def remove(*files: Path) -> Path:
    """Move files of one dataset, images with their captions and masks, to its bin for a week.

    Returns the folder in the bin, for `restore`.
    """
    folder = files[0].parent
    bin_folder = folder / storage.BIN / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    bin_folder.mkdir(parents=True)
    with captions_lock(folder):
        for file in files:
            mask = mask_file(file)
            # A mask from a folder of masks would come back under the name of an image.
            mask_name = mask.name if mask.parent == folder else file.with_suffix(MASK).name
            texts = [(path, path.name) for path in map(file.with_suffix, FORMS)]
            for path, name in (*texts, (mask, mask_name), (file, file.name)):
                if path.is_file():
                    storage.replace(path, bin_folder / name)
    return bin_folder


def restore(bin_folder: Path) -> None:
    """Bring back what `remove` moved away; an image whose name is taken by now stays there, with its caption and mask.

    Raises:
        UserError: a name is taken.
    """
    folder = bin_folder.parent.parent
    with captions_lock(folder):
        files = [path for path in bin_folder.iterdir() if path.is_file()]
        taken = {masked_stem(path) for path in folder.iterdir() if path.is_file()}
        restored = sorted(path.name for path in files if masked_stem(path) not in taken)
        for name in restored:
            storage.replace(bin_folder / name, folder / name)
    if len(restored) < len(files):
        raise UserError("Files of the same name have been added since.", "Rename or remove those and try again.")
    shutil.rmtree(bin_folder)


def restore_last(folder: Path) -> bool:
    """Bring back the files removed last; False if there are none."""
    bin_folders = sorted((folder / storage.BIN).glob("*"))
    if not bin_folders:
        return False
    restore(bin_folders[-1])
    return True


def find_example(name: str) -> Path:
    """Return the folder of an example, in the checkout or in the installed package."""
    return (PACKAGED_EXAMPLES if PACKAGED_EXAMPLES.is_dir() else paths.CODE / "datasets") / name


def install_examples() -> None:
    """Copy the examples into a home folder that has no datasets yet."""
    datasets = paths.datasets()
    if datasets.exists() or not PACKAGED_EXAMPLES.is_dir():
        return
    datasets.parent.mkdir(parents=True, exist_ok=True)
    partial = datasets.with_name(f"datasets.tmp-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(PACKAGED_EXAMPLES, partial)
    partial.rename(datasets)
