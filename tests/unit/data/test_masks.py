"""Masks that are drawn or made from transparency: what is written beside the images, and its undo."""

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.hostile.pictures import png, saved
from trainer.data import checks, dataset, fixes, image_edits, image_stats, undo
from trainer.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clear = Image.new("RGBA", (40, 30), (200, 30, 30, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 20, 30))
    for name in ("a", "b"):
        clear.save(tmp_path / f"{name}.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "c.png")
    return tmp_path


def corners(data: bytes) -> tuple[object, object]:
    with Image.open(io.BytesIO(data)) as mask:
        return mask.convert("L").getpixel((0, 0)), mask.convert("L").getpixel((39, 29))


def test_a_mask_is_drawn_undone_or_refused(folder: Path) -> None:
    drawn = Image.new("RGBA", (40, 30), "white")
    drawn.paste("black", (0, 0, 10, 10))
    undo.edit_masks(folder, {"c.png": image_edits.mask_from_drawing(saved(drawn, "PNG"))}, "draw")
    assert corners((folder / "c.mask.png").read_bytes()) == (0, 255)
    white = saved(Image.new("RGB", (40, 30), "white"), "PNG")
    undo.edit_masks(folder, {"c.png": image_edits.mask_from_drawing(white)}, "clear")
    assert dataset.read_mask(folder / "c.png") == b""
    assert undo.undo(folder) is not None
    assert corners(dataset.read_mask(folder / "c.png")) == (0, 255)
    assert undo.undo(folder) is not None
    assert dataset.read_mask(folder / "c.png") == b""
    for data in (b"", b"<svg/>", png(40000, 40000, 8, 0, b""), bytes(image_edits.MAX_MASK_BYTES + 1)):
        with pytest.raises(UserError):
            image_edits.mask_from_drawing(data)


def test_a_mask_that_changed_since_is_not_undone(folder: Path) -> None:
    (folder / "masks").mkdir()
    Image.new("L", (40, 30), 9).save(folder / "masks" / "c.png")
    undo.edit_masks(folder, {"c.png": saved(Image.new("L", (40, 30), 0), "PNG")}, "draw")
    assert not (folder / "c.mask.png").exists()
    (folder / "masks" / "c.png").write_bytes(b"newer")
    undo.undo(folder)
    assert (folder / "masks" / "c.png").read_bytes() == b"newer"


def test_transparency_becomes_masks_with_one_undo(folder: Path) -> None:
    own = saved(Image.new("L", (40, 30), 7), "PNG")
    (folder / "b.mask.png").write_bytes(own)
    problems = checks.examine(folder, stats=image_stats.measure_missing(folder)).problems
    assert fixes.apply_fix(folder, problems, "transparent") == "Made 1 mask from transparency."
    assert corners((folder / "a.mask.png").read_bytes()) == (0, 255)
    assert (folder / "b.mask.png").read_bytes() == own
    assert not (folder / "c.mask.png").exists()
    undo.undo(folder)
    assert not (folder / "a.mask.png").exists()
