"""Data sets: reading, captions in any encoding, buckets, what is wrong, taking in and removing pictures."""

import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image

from tests.hostile import containers
from tests.hostile.pictures import saved
from trainer.data import dataset, images, uploads
from trainer.data.uploads import Report


def png(color: str | int | tuple[int, ...] = "red", size: tuple[int, int] = (80, 80), mode: str = "RGB") -> bytes:
    return saved(Image.new(mode, size, color), "PNG")


def add(folder: Path, *files: tuple[str, bytes]) -> Report:
    return uploads.add(folder, containers.offer(folder.parent.parent, *files))


def pixel(path: Path) -> object:
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((0, 0))


@pytest.fixture
def folder(home: Path) -> Path:
    return dataset.create("rin")


def test_a_zip_keeps_captions_with_their_pictures(folder: Path, tmp_path: Path) -> None:
    images = {"set/one.png": png("red"), "other/one.png": png("blue"), "../../ONE.png": png("green")}
    captions = {"set/one.txt": "first", "other/one.txt": "second", "readme.pdf": b"%PDF"}
    report = add(folder, ("my set.zip", containers._zip(images | captions)))
    assert report.refused == [("readme.pdf", "not an image")]
    captions = {pixel(example.path): example.caption for example in dataset.read(folder)}
    assert captions == {(255, 0, 0): "first", (0, 0, 255): "second", (0, 128, 0): ""}
    assert len({example.path.stem.lower() for example in dataset.read(folder)}) == 3
    assert all(folder in path.parents for path in tmp_path.rglob("*.png"))


def test_captions_find_their_pictures_and_none_is_guessed(folder: Path) -> None:
    add(folder, ("a.png", png()))
    report = add(folder, ("a.txt", b"late"), ("b.txt", b"lonely"))
    assert dataset.read(folder)[0].caption == "late"
    assert report.refused == [("b.txt", "no image of this name for the caption")]
    (folder / "a.txt").write_text("edited since")
    report = add(folder, ("a.png", png()), ("a.txt", b"late"))
    assert (report.known, dataset.read(folder)[0].caption) == (1, "edited since")
    files = [("c.png", png("teal")), ("c.txt", b"one"), ("c.png", png("blue")), ("c.txt", b"two"), (".DS_Store", b"x")]
    report = add(folder, *files)
    assert [example.caption for example in dataset.read(folder)] == ["edited since", "", ""]
    assert report.refused == [("c.txt", "several different captions have this name; add one folder at a time")]


def test_the_digest_is_of_content_alone(folder: Path) -> None:
    (folder / "a.png").write_bytes(png())
    digest = dataset.digest(dataset.read(folder))
    (folder / "a.png").rename(folder / "b.png")
    assert dataset.digest(dataset.read(folder)) == digest
    dataset.write_caption(folder / "b.png", "x")
    assert dataset.digest(dataset.read(folder)) != digest


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes among the files of this system")
def test_a_late_thumbnail_does_not_bring_a_deleted_project_back(tmp_path: Path) -> None:
    project = tmp_path / "deleted"
    project.mkdir()
    os.mkfifo(project / "slow.png")  # read until its writer ends

    def write() -> None:
        with (project / "slow.png").open("wb") as pipe:
            shutil.rmtree(project)
            Image.new("RGB", (64, 64), "teal").save(pipe, "PNG")

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        assert images.thumbnail(project, project / "slow.png")
    written.result()
    assert not project.exists()


def test_a_thumbnail_is_made_once_and_shown_if_it_cannot_be_kept(folder: Path) -> None:
    (folder / "a.png").write_bytes(png(size=(1000, 500)))
    (folder / ".cache").write_bytes(b"in the way, as a full disk would be")
    with Image.open(io.BytesIO(images.thumbnail(folder, folder / "a.png"))) as image:
        assert image.size == (320, 160)
    (folder / ".cache").unlink()
    images.thumbnail(folder, folder / "a.png")
    (kept,) = (path for path in (folder / ".cache").rglob("*") if path.is_file())
    kept.write_bytes(b"kept")
    assert images.thumbnail(folder, folder / "a.png") == b"kept"


def test_an_image_is_found_by_its_name_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "inner").mkdir()
    (folder / "folder.png").mkdir()
    for name in ("a.png", "b.JPG", "a.mask.png", "a.txt", ".hidden.png", "inner/c.png", "../outside.png"):
        (folder / name).write_bytes(b"x")
    (folder / "link.png").symlink_to(folder.with_name("outside.png"))
    assert [path.name for path in dataset.image_files(folder)] == ["a.png", "b.JPG"]
    for listing in ("os.scandir", "os.listdir"):
        monkeypatch.setattr(listing, Mock(side_effect=AssertionError))
    assert [dataset.find_image(folder, name) for name in ("a.png", "b.JPG")] == [folder / "a.png", folder / "b.JPG"]
    others = ["a.txt", "a.mask.png", ".hidden.png", "folder.png", "link.png", "no.png", "", ".", "..", "inner/c.png"]
    others += [
        "../outside.png",
        str(folder.with_name("outside.png")),
        "a.png/",
        "./a.png",
        "a\0.png",
        "a" * 300 + ".png",
    ]
    assert [name for name in others if dataset.find_image(folder, name)] == []
