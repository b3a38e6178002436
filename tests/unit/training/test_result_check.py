"""Previews are like the images in other colors, and unlike them as blurs, blocks and other subjects."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from trainer.training import result_check


def drawn(path: Path, number: int, figure: str = "robot") -> Path:
    """A figure a little aside from the others, in front of a color of its own."""
    image = Image.new("RGB", (256, 256), (120 + 9 * number, 200, 255 - 9 * number))
    draw, x = ImageDraw.Draw(image), 100 + 2 * number
    if figure == "robot":
        draw.rectangle((x, 100, x + 60, 190), fill="teal", outline="black", width=4)
        draw.rectangle((x + 10, 50, x + 50, 95), fill="silver", outline="black", width=4)
        draw.line((x, 110, x - 40, 150 - 4 * number), fill="black", width=8)
    else:
        draw.ellipse((x - 40, 60, x + 100, 200), fill="tan", outline="black", width=4)
        draw.arc((x, 120, x + 60, 170), 0, 180, fill="black", width=6)
    image.save(path)
    return path


@pytest.fixture
def robots(tmp_path: Path) -> list[Path]:
    return [drawn(tmp_path / f"{number}.png", number) for number in range(6)]


def test_the_same_figure_in_other_colors_is_like_it_and_another_or_a_blur_is_not(
    robots: list[Path], tmp_path: Path
) -> None:
    picture = tmp_path / "preview.png"
    ImageOps.invert(ImageOps.mirror(Image.open(drawn(picture, 9)))).save(picture)
    assert result_check.likeness([picture], robots) > 0.9
    blurred, block = tmp_path / "blurred.png", tmp_path / "block.png"
    Image.open(robots[0]).filter(ImageFilter.GaussianBlur(12)).save(blurred)
    Image.new("RGB", (256, 256), "teal").save(block)
    face = drawn(tmp_path / "face.png", 0, "face")
    for picture in (blurred, block, face):
        assert result_check.likeness([picture], robots) < result_check.LEAST


def test_images_without_any_shape_are_not_judged(tmp_path: Path) -> None:
    blank = [tmp_path / f"{number}.png" for number in range(4)]
    for path in blank:
        Image.new("RGB", (64, 64), "teal").save(path)
    assert result_check.likeness(blank[:1], blank) == 1
