"""Images are rotated and cropped from their originals, which never get lost, and masks are made and go with them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile.pictures import exif, png, saved
from trainer.data import checks, dataset, fixes, image_edits, image_stats, images, undo
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
    rotate(folder)
    (kept,) = (folder / image_edits.ORIGINALS).glob("*/edit.json")
    kept.write_text(f"{'0' * 64}\n{kept.read_text()}")
    assert image_edits.current(path) == Edit(1), "an edit of an earlier version can be undone"


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
    undo.edit_images(folder, {"a.png": Edit(1, (10, 0, 50, 40))}, "crop")
    assert (pixels(folder / "a.mask.png")[..., 0] == np.rot90(mask[:, 10:50], -1)).all()
    # It is changed in the part that is left: that change stays, and so does what was around.
    Image.new("L", (40, 40), 255).save(folder / "a.mask.png")
    undo.undo(folder)
    mask[:, 10:50] = 255
    assert (pixels(folder / "a.mask.png")[..., 0] == mask).all()


def test_of_two_equal_images_each_keeps_its_original(folder: Path) -> None:
    picture().save(folder / "b.png")
    for _ in range(2):
        undo.edit_images(folder, image_edits.rotations(folder, ["a.png", "b.png"], 1), "rotate both")
        assert (undo.undo(folder), image_edits.edited(folder)) == (undo.Undone("rotate both", 0, 0, 2), set())
    undo.edit_images(folder, {"a.png": Edit(1), "b.png": Edit(1)}, "rotate both")
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


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    clear = Image.new("RGBA", (40, 30), (200, 30, 30, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 20, 30))
    for name in ("a", "b"):
        clear.save(tmp_path / f"{name}.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "c.png")
    return tmp_path


def corners(data: bytes) -> tuple[object, object]:
    mask = images.decode(data).convert("L")
    return mask.getpixel((0, 0)), mask.getpixel((39, 29))


def test_a_mask_is_drawn_undone_or_refused(masked: Path) -> None:
    def draw(image: Image.Image) -> None:
        undo.edit_masks(masked, {"c.png": image_edits.mask_from_drawing(saved(image, "PNG"))}, "draw")

    drawn = Image.new("RGBA", (40, 30), "white")
    drawn.paste("black", (0, 0, 10, 10))
    draw(drawn)
    assert corners((masked / "c.mask.png").read_bytes()) == (0, 255)
    draw(Image.new("RGB", (40, 30), "white"))
    assert dataset.read_mask(masked / "c.png") == b""
    undo.undo(masked)
    assert corners(dataset.read_mask(masked / "c.png")) == (0, 255)
    undo.undo(masked)
    assert dataset.read_mask(masked / "c.png") == b""
    for data in (b"", b"<svg/>", png(40000, 40000, 8, 0, b""), bytes(image_edits.MAX_MASK_BYTES + 1)):
        with pytest.raises(UserError):
            image_edits.mask_from_drawing(data)


def test_a_mask_that_changed_since_is_not_undone(masked: Path) -> None:
    (masked / "masks").mkdir()
    Image.new("L", (40, 30), 9).save(masked / "masks" / "c.png")
    undo.edit_masks(masked, {"c.png": saved(Image.new("L", (40, 30), 0), "PNG")}, "draw")
    assert not (masked / "c.mask.png").exists()
    (masked / "masks" / "c.png").write_bytes(b"newer")
    undo.undo(masked)
    assert (masked / "masks" / "c.png").read_bytes() == b"newer"


def test_transparency_becomes_masks_with_one_undo(masked: Path) -> None:
    own = saved(Image.new("L", (40, 30), 7), "PNG")
    (masked / "b.mask.png").write_bytes(own)
    image_stats.measure_missing(masked)
    problems = checks.examine(masked).problems
    assert fixes.apply_fix(masked, problems, "transparent") == "Made 1 mask from transparency."
    assert corners((masked / "a.mask.png").read_bytes()) == (0, 255)
    assert (masked / "b.mask.png").read_bytes() == own
    assert not (masked / "c.mask.png").exists()
    undo.undo(masked)
    assert not (masked / "a.mask.png").exists()
