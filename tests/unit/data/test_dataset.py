"""Data sets: reading, captions in any encoding, buckets, what is wrong, taking in and removing pictures."""

import io
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer import paths
from trainer.data import buckets, dataset, images, uploads
from trainer.data.captions import with_trigger
from trainer.errors import UserError


def png(color: str | tuple[int, ...] = "red", size: tuple[int, int] = (80, 80), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


def source(folder: Path, name: str, data: bytes) -> tuple[str, Path]:
    """A file as the page passes it on: the name that the user knows, the bytes under another one."""
    path = folder / f"upload{len(list(folder.iterdir()))}"
    path.write_bytes(data)
    return name, path


def pixel(path: Path) -> object:
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((0, 0))


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(home: Path) -> Path:
    return dataset.create("rin")


def test_good_files_are_kept_beside_bad_ones(folder: Path, incoming: Path) -> None:
    whole = png("green")
    report = uploads.add(
        folder,
        [
            source(incoming, "a.png", png("red")),
            source(incoming, "a.txt", "rin, rot \u00e4".encode()),
            source(incoming, "copy.png", png("red")),
            source(incoming, "text.png", b"not a picture at all"),
            source(incoming, "cut.png", whole[: len(whole) // 2]),
            source(incoming, "empty.jpg", b""),
            source(incoming, "phone.heic", b"\0\0\0\x18ftypheic"),
            source(incoming, "../../evil.png", png("blue")),
        ],
    )
    assert sorted(report.added) == ["a.png", "evil.png"]
    assert (report.captions, report.known) == (1, 1)
    assert dict(report.refused) == {
        "text.png": "not an image",
        "cut.png": "damaged",
        "empty.jpg": "not an image",
        "phone.heic": "damaged",
    }
    assert report.sentence().startswith(
        "Added 2 images. 1 caption came with them. 1 already there, skipped. Not used: "
    )
    assert [(example.name, example.caption) for example in dataset.read(folder)] == [
        ("a.png", "rin, rot \u00e4"),
        ("evil.png", ""),
    ]
    assert {path.name for path in folder.iterdir()} == {paths.CACHE, "a.png", "a.txt", "evil.png"}
    assert {path.name for path in folder.parent.iterdir()} == {"rin"}


def test_equal_names_never_replace_each_other(folder: Path, incoming: Path) -> None:
    colors = ["red", "green", "blue"]
    uploads.add(
        folder,
        [source(incoming, name, png(color)) for name, color in zip(["a.png", "A.png", "a.jpg"], colors, strict=True)],
    )
    kept = dataset.read(folder)
    assert len({example.path.stem.lower() for example in kept}) == 3
    seen = {pixel(example.path) for example in kept}
    assert seen == {(255, 0, 0), (0, 128, 0), (0, 0, 255)}


def test_a_zip_with_captions_and_nonsense(folder: Path, incoming: Path, tmp_path: Path) -> None:
    path = incoming / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("set/one.png", png("red"))
        archive.writestr("set/one.txt", "first")
        archive.writestr("other/one.png", png("blue"))
        archive.writestr("other/one.txt", "second")
        archive.writestr("../../outside.png", png("green"))
        archive.writestr("readme.pdf", b"%PDF")
        archive.writestr("__MACOSX/._one.png", b"junk")
        archive.writestr("bomb.png", bytes(300 * 2**20), zipfile.ZIP_DEFLATED)
    report = uploads.add(folder, [("my set.zip", path)])
    assert dict(report.refused) == {"readme.pdf": "not an image", "bomb.png": "too large when unpacked"}
    captions = {pixel(example.path): example.caption for example in dataset.read(folder)}
    assert captions == {(255, 0, 0): "first", (0, 0, 255): "second", (0, 128, 0): ""}
    assert all(folder in path.parents for path in tmp_path.rglob("*.png"))


def test_no_zip_at_all(folder: Path, incoming: Path) -> None:
    report = uploads.add(folder, [source(incoming, "x.zip", b"PK\x03\x04 no")])
    assert report.refused == [("x.zip", "not a zip file, or damaged")]


def test_captions_of_one_name_are_not_guessed(folder: Path, incoming: Path) -> None:
    report = uploads.add(
        folder,
        [
            source(incoming, "a.png", png("red")), source(incoming, "a.txt", b"one"),
            source(incoming, "a.png", png("blue")), source(incoming, "a.txt", b"two"),
            source(incoming, ".DS_Store", b"x"),
        ],
    )  # fmt: skip
    assert [example.caption for example in dataset.read(folder)] == ["", ""]
    assert report.refused == [("a.txt", "several different captions have this name; add one folder at a time")]


def test_captions_alone_find_their_pictures(folder: Path, incoming: Path) -> None:
    uploads.add(folder, [source(incoming, "a.png", png())])
    report = uploads.add(folder, [source(incoming, "a.txt", b"late"), source(incoming, "b.txt", b"lonely")])
    assert dataset.read(folder)[0].caption == "late"
    assert report.refused == [("b.txt", "no image of this name for the caption")]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("caf\u00e9".encode(), "caf\u00e9"),
        ("\ufeffcaf\u00e9".encode(), "caf\u00e9"),
        ("caf\u00e9".encode("utf-16"), "caf\u00e9"),
        ("caf\u00e9".encode("cp1252"), "caf\u00e9"),
        (b"two\r\nlines\t x \x1b[31m", "two lines x [31m"),
        (b"", ""),
    ],
)
def test_captions_in_any_encoding(folder: Path, data: bytes, text: str) -> None:
    (folder / "a.png").write_bytes(png())
    (folder / "a.txt").write_bytes(data)
    assert dataset.read(folder)[0].caption == text


def test_a_picture_is_decoded_as_a_viewer_shows_it() -> None:
    half = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    half.putpixel((0, 0), (0, 0, 255, 255))
    buffer = io.BytesIO()
    half.save(buffer, "PNG")
    image = images.decode(buffer.getvalue())
    assert image.getpixel((0, 0)) == (0, 0, 255)
    assert image.getpixel((3, 1)) == (255, 255, 255)

    deep = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    buffer = io.BytesIO()
    deep.save(buffer, "PNG")
    assert [images.decode(buffer.getvalue()).getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]

    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    buffer = io.BytesIO()
    Image.new("RGB", (30, 10), "white").save(buffer, "JPEG", exif=exif)
    assert images.decode(buffer.getvalue()).size == (10, 30)


def test_sizes_are_those_of_the_shown_picture(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 10)).save(folder / "a.jpg", exif=exif)
    assert (dataset.read(folder)[0].width, dataset.read(folder)[0].height) == (10, 30)


@pytest.mark.parametrize("size", [(9000, 9000), (40000, 40000)])
def test_a_lying_header_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    data = bytearray(png())
    data[16:24] = struct.pack(">II", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(UserError, match="larger than 64 megapixels"):
        images.decode(bytes(data))


@given(st.integers(1, 8000), st.integers(1, 8000), st.sampled_from([64, 256, 512, 768, 1024]))
def test_buckets_have_near_the_wanted_area_and_the_nearest_shape(width: int, height: int, resolution: int) -> None:
    w, h = buckets.bucket(width, height, resolution)
    assert w % 64 == 0
    assert h % 64 == 0
    assert w * h <= resolution**2
    assert buckets.bucket(1, 1, resolution) == (resolution, resolution)
    if width > height:
        assert w >= h


def test_triggers_are_whole_words() -> None:
    assert with_trigger("a cat", "rin") == "rin, a cat"
    assert with_trigger("Rin in a hat", "rin") == "Rin in a hat"
    assert with_trigger("string", "rin") == "rin, string"
    assert with_trigger("", "rin") == "rin"
    assert with_trigger("x", "") == "x"


def test_removing_and_bringing_back(folder: Path) -> None:
    (folder / "a.png").write_bytes(png())
    dataset.write_caption(folder / "a.png", "x")
    dataset.remove(folder / "a.png")
    assert dataset.read(folder) == ()
    assert dataset.restore_last(folder)
    assert dataset.read(folder)[0].caption == "x"
    assert not dataset.restore_last(folder)


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    assert dataset.read(folder) == ()


def test_the_digest_is_of_content_alone(folder: Path) -> None:
    (folder / "a.png").write_bytes(png())
    digest = dataset.digest(dataset.read(folder))
    (folder / "a.png").rename(folder / "b.png")
    assert dataset.digest(dataset.read(folder)) == digest
    dataset.write_caption(folder / "b.png", "x")
    assert dataset.digest(dataset.read(folder)) != digest


@pytest.mark.parametrize("name", ["absent", "../datasets", "/nowhere/at/all"])
def test_a_data_set_that_is_not_there(home: Path, name: str) -> None:
    if name == "../datasets":
        assert dataset.find_folder(str(home / "datasets")).is_dir()
        return
    with pytest.raises(UserError) as caught:
        dataset.find_folder(name)
    assert str(home) not in str(caught.value)


def test_a_thumbnail_is_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.png").write_bytes(png(size=(1000, 500)))
    real_sync, synced = os.fsync, list[int]()
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(number), real_sync(number)))
    path = images.thumbnail(folder, folder / "a.png")
    assert len(synced) == 1  # the file, so that it is whole; not its folder, as it can be made again
    with Image.open(path) as image:
        assert image.size == (320, 160)
    stamp = path.stat().st_mtime_ns
    assert images.thumbnail(folder, folder / "a.png").stat().st_mtime_ns == stamp


def test_an_image_is_found_by_its_name_without_listing_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.JPG", "a.mask.png", "a.txt", ".hidden.png"):
        (folder / name).write_bytes(b"x")
    (folder / "inner").mkdir()
    (folder / "inner" / "c.png").write_bytes(b"x")
    (folder / "folder.png").mkdir()
    (tmp_path / "outside.png").write_bytes(b"x")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    assert [path.name for path in dataset.image_files(folder)] == ["a.png", "b.JPG"]

    def never(_folder: object) -> None:
        raise AssertionError

    monkeypatch.setattr("os.scandir", never)
    monkeypatch.setattr("os.listdir", never)
    assert dataset.find_image(folder, "a.png") == folder / "a.png"
    assert dataset.find_image(folder, "b.JPG") == folder / "b.JPG"
    others = ["a.txt", "a.mask.png", ".hidden.png", "folder.png", "link.png", "no.png", "", ".", "..", "inner/c.png"]
    others += ["../outside.png", str(tmp_path / "outside.png"), "a.png/", "./a.png", "a\0.png", "a" * 300 + ".png"]
    assert [name for name in others if dataset.find_image(folder, name)] == []


def test_masks_are_found_with_one_look_at_the_folders(folder: Path) -> None:
    for name in ("a.png", "b.png", "c.PNG", "d.jpg", "a.mask.png", "b-masklabel.png"):
        (folder / name).write_bytes(b"x")
    (folder / "mask").mkdir()
    (folder / "mask" / "d.png").write_bytes(b"x")
    (folder / "mask" / "c.jpg").write_bytes(b"x")  # not in a form that is read
    files = dataset.image_files(folder)
    assert [path.name for path in dataset.masked(folder, files)] == ["a.png", "b.png", "d.jpg"]
    assert dataset.masked(folder, files) == [path for path in files if dataset.mask_file(path).is_file()]


def test_an_image_with_a_long_name_gets_a_caption(character: Path) -> None:
    image = character / f"{'x' * 236}.png"
    shutil.copy(character / "01.png", image)
    dataset.write_caption(image, "a caption")
    assert [example.caption for example in dataset.read(character) if example.path == image] == ["a caption"]


@pytest.mark.parametrize("caption", ["a fox,", "a fox, ", ", a fox", "a, b,, c", "(a:1.2), \\(b\\)"])
def test_a_caption_is_stored_as_it_was_typed(home: Path, caption: str) -> None:
    folder = dataset.create("rin")
    image = folder / "1.png"
    Image.new("RGB", (64, 64)).save(image)
    dataset.write_caption(image, caption)
    assert dataset.read_caption(image) == caption.strip()
