"""The place where a photo was taken is removed from its file, and nothing else is."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.hostile.pictures import saved
from trainer.data import dataset, location, uploads

GPS, ORIENTATION, CAMERA = 0x8825, 0x0112, 0x010F
XMP = (
    b'<x:xmpmeta xmlns:x=\'adobe:ns:meta/\'><rdf:Description exif:GPSLatitude="52,31.2N" tiff:Make="Camera">'
    b"<exif:GPSLongitude>13,24.5E</exif:GPSLongitude></rdf:Description></x:xmpmeta>"
)
PLACE = re.compile(rb"52,31\.2N|13,24\.5E|WGS-84")


def photo(form: str, *, order: str = "<", xmp: bytes = XMP, compressed: bool = False) -> bytes:
    image = Image.effect_noise((64, 48), 80).convert("RGB")
    exif = Image.Exif()
    exif.endian = order
    exif[ORIENTATION], exif[CAMERA] = 6, "A camera with a long name"
    exif[GPS] = {1: "N", 2: (52.0, 31.0, 12.5), 3: "E", 4: (13.0, 24.0, 30.5), 18: "WGS-84"}
    options: dict[str, object] = {"exif": exif}
    if form in ("JPEG", "WEBP"):
        options["xmp"] = xmp
    else:
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=compressed)
        info.add_text("Raw profile type exif", "00000000", zip=True)
        info.add_text("Title", "kept")
        options["pnginfo"] = info
    return saved(image, form, lossless=True, **options)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_place_goes_and_all_else_stays(form: str, order: str) -> None:
    data = photo(form, order=order)
    assert PLACE.search(data)
    with Image.open(io.BytesIO(data)) as before:
        assert before.getexif().get_ifd(GPS)[18] == "WGS-84"
        pixels = before.tobytes()
    cleaned = location.removed(data)
    assert not PLACE.search(cleaned)
    with Image.open(io.BytesIO(cleaned)) as after:
        assert not after.getexif().get_ifd(GPS)
        assert (after.getexif()[ORIENTATION], after.getexif()[CAMERA]) == (6, "A camera with a long name")
        assert after.tobytes() == pixels
        assert b"Camera" in cleaned
        if form == "PNG":
            assert after.info["Title"] == "kept"
    with Image.open(io.BytesIO(cleaned)) as after:
        after.verify()  # the checksums of a PNG
    assert location.removed(cleaned) == cleaned
    if form != "PNG":
        assert len(cleaned) == len(data)


def test_several_images_in_a_file_compressed_text_and_files_without_a_place() -> None:
    data = photo("JPEG") + photo("JPEG", order=">")
    cleaned = location.removed(data)
    assert not PLACE.search(cleaned)
    assert len(cleaned) == len(data)
    for form in ("JPEG", "PNG", "WEBP", "BMP"):
        plain = saved(Image.new("RGB", (20, 20), "red"), form)
        assert location.removed(plain) == plain
    with Image.open(io.BytesIO(location.removed(photo("PNG", compressed=True)))) as image:
        image.load()
        assert set(image.info) & {"XML:com.adobe.xmp", "xmp", "Raw profile type exif"} == set()


def test_an_upload_loses_its_place_unless_it_is_to_be_kept(home: Path) -> None:
    (home / "a.jpg").write_bytes(photo("JPEG"))
    folder = dataset.create("rin")
    assert uploads.add(folder, [("a.jpg", home / "a.jpg")]).added == ["a.jpg"]
    assert not PLACE.search((folder / "a.jpg").read_bytes())
    assert uploads.add(folder, [("again.jpg", home / "a.jpg")]).known == 1
    other = dataset.create("mira")
    uploads.add(other, [("a.jpg", home / "a.jpg")], keep_location=True)
    assert (other / "a.jpg").read_bytes() == (home / "a.jpg").read_bytes()
