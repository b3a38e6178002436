"""Images are rotated and cropped from their originals, which never get lost, and masks go with them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile.pictures import exif
from trainer.data import dataset, image_edits, images, undo
from trainer.data.image_edits import Edit
from trainer.errors import UserError

SIZE = (60, 40)


def picture() -> Image.Image:
    """Every pixel tells where it is."""
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    return Image.fromarray(np.stack([x * 4, y * 4, x * 0 + 99], axis=2).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a caption\n")
    return tmp_path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(images.decode(path.read_bytes()))


def rotate(folder: Path, turns: int = 1) -> None:
    undo.edit_images(folder, image_edits.rotations(folder, ["a.png"], turns), "rotate")


def test_a_rotation_is_clockwise_and_four_give_back_the_file(folder: Path) -> None:
    path = folder / "a.png"
    original = path.read_bytes()
    rotate(folder)
    assert (pixels(path) == np.rot90(np.asarray(picture()), -1)).all()
    assert image_edits.edited(folder) == {"a.png"}
    for _ in range(3):
        rotate(folder)
    assert path.read_bytes() == original
    assert image_edits.edited(folder) == set()
    assert not list((folder / image_edits.ORIGINALS).iterdir())
    assert dataset.read(folder)[0].caption == "a caption"


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_crop_is_that_of_the_image_as_it_is_shown(folder: Path, turns: int) -> None:
    path = folder / "a.png"
    rotate(folder, turns)
    visible = pixels(path)
    for left, top, right, bottom in ((3, 5, 33, 37), (2, 1, 28, 30)):  # the second is within the first
        undo.edit_images(folder, {"a.png": image_edits.crop(path, (left, top, right, bottom))}, "crop")
        visible = visible[top:bottom, left:right]
        assert (pixels(path) == visible).all()
    with pytest.raises(UserError, match="smaller than 16 pixels"):
        image_edits.crop(path, (0, 0, 60, 15))
    image_edits.change(path, Edit())
    assert (pixels(path) == np.asarray(picture())).all()
    assert image_edits.crop(path, (-9, -9, 999, 999)) == Edit()


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "BMP", "PNG"])
def test_an_edit_keeps_the_format_and_turns_upright(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form.lower()}"
    turned = {} if form == "BMP" else {"exif": exif(6)}
    picture().save(path, form, **turned)
    upright = pixels(path)
    image_edits.change(path, Edit(2))
    with Image.open(path) as image:
        assert image.format == form
        assert dict(image.getexif()) == {}
    assert np.abs(pixels(path).astype(int) - np.rot90(upright, 2)).mean() < 6


def test_the_mask_is_cropped_and_restored_with_its_image(folder: Path) -> None:
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[:20] = 255
    Image.fromarray(mask).save(folder / "a.mask.png")
    path = folder / "a.png"
    undo.edit_images(folder, {"a.png": Edit(1, (10, 0, 50, 40))}, "crop")
    assert (pixels(folder / "a.mask.png")[..., 0] == np.rot90(mask[:, 10:50], -1)).all()
    # It is changed in the part that is left: that change stays, and so does what was around.
    Image.new("L", (40, 40), 255).save(folder / "a.mask.png")
    undo.undo(folder)
    mask[:, 10:50] = 255
    assert (pixels(folder / "a.mask.png")[..., 0] == mask).all()
    assert path.read_bytes()


def test_of_two_equal_images_each_keeps_its_original(folder: Path) -> None:
    picture().save(folder / "b.png")
    undo.edit_images(folder, {"a.png": Edit(1), "b.png": Edit(1)}, "rotate both")
    undone = undo.undo(folder)
    assert undone is not None
    assert (undone.images, image_edits.edited(folder)) == (2, set()), "with one undo"
    undo.edit_images(folder, image_edits.rotations(folder, ["a.png", "b.png"], 1), "rotate both")
    image_edits.change(folder / "a.png", Edit())
    assert image_edits.edited(folder) == {"b.png"}
    image_edits.change(folder / "b.png", Edit())
    assert (folder / "b.png").read_bytes() == (folder / "a.png").read_bytes()


def test_what_another_program_changed_is_the_new_original(folder: Path) -> None:
    path = folder / "a.png"
    rotate(folder)
    (first,) = (folder / image_edits.ORIGINALS).iterdir()
    Image.new("RGB", (50, 50), "red").save(path)
    theirs = path.read_bytes()
    assert image_edits.current(path) == Edit()
    rotate(folder)
    image_edits.change(path, Edit())
    assert path.read_bytes() == theirs
    assert first.is_dir()  # the older original is not lost either


def test_a_write_that_fails_leaves_the_image_as_it_was(folder: Path) -> None:
    path = folder / "a.png"
    before = path.read_bytes()
    (folder / image_edits.ORIGINALS).write_text("a file where a folder has to be")
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
        image_edits.change(path, Edit(1))
    assert path.read_bytes() == before
