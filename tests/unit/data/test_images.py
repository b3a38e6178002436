"""Headers of image files, which are read without decoding pixels."""

from pathlib import Path

import pytest

from tests.hostile.pictures import chunk, exif, png, saved, two
from trainer.data import images

SIDEWAYS = exif(6).tobytes().removeprefix(b"Exif\0\0")
RAW_PROFILE = b"Raw profile type exif\0\0" + b"\nexif\n%8d\n" % len(SIDEWAYS) + SIDEWAYS.hex().encode()
UPRIGHT = png(8, 4, 8, 0, b"\0" * 36)
PNGS = {
    "upright": UPRIGHT,
    "exif first": png(8, 4, 8, 0, b"\0" * 36, chunk(b"eXIf", SIDEWAYS)),
    "exif last": UPRIGHT[:-12] + chunk(b"eXIf", SIDEWAYS) + UPRIGHT[-12:],
    "raw profile last": UPRIGHT[:-12] + chunk(b"tEXt", RAW_PROFILE) + UPRIGHT[-12:],
    "animated": saved(two(), "PNG", save_all=True, append_images=[two("RGB", (80, 60)).rotate(90)], exif=exif(6)),
}


@pytest.mark.parametrize("name", PNGS)
def test_size_is_that_of_the_upright_image(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(PNGS[name])
    assert images.display_size(tmp_path / "a.png") == images.upright(PNGS[name]).size


def test_headers_are_read_without_pixels(tmp_path: Path) -> None:
    """A PNG is known to lie on its side even if its pixels, which stand before that, cannot be decoded."""
    start, middle, end = UPRIGHT.partition(b"IDAT")
    broken = start + middle + b"\xff" * 4 + end[4:-12] + chunk(b"eXIf", SIDEWAYS) + end[-12:]
    (tmp_path / "a.png").write_bytes(broken)
    with pytest.raises(images.DamagedError):
        images.upright(broken)
    assert images.display_size(tmp_path / "a.png") == (4, 8)
    assert images.is_rotated(tmp_path / "a.png")
