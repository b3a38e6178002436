"""Each odd or hostile file becomes what is written beside it: taken as a viewer shows it, or refused in words.

Nothing of it is run, nothing unpickled, no other program started, nothing written outside the data set's own folder.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from html import unescape
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from PIL import Image

from tests.conftest import HANG
from tests.hostile import MARK, Refused, Taken, containers, pictures, texts
from tests.hostile.containers import offer
from trainer import families, paths, storage
from trainer.adapter_files import reader, safetensors_reader, summary
from trainer.base_models import detect
from trainer.config import ModelConfig
from trainer.data import checks, dataset, images, uploads
from trainer.data.captions import MAX_BYTES, REPLACEMENT, caption_file
from trainer.data.uploads import Report
from trainer.errors import UserError
from trainer.families.files import loading
from ui.state import adapter_choices
from ui.tabs import download, image_grid

GOOD, BAD = pictures.good(), pictures.bad()
ZIPS, ADAPTERS = containers.zips(), containers.adapters()
SOUND, PICTURES = containers.picture(), [data for _, data, _ in (*GOOD.values(), *BAD.values())]


@pytest.fixture
def folder(home: Path) -> Path:
    return dataset.create("rin")


@pytest.fixture(autouse=True)
def _nothing_is_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No code of a file runs, no program is started by its name, nothing is made beside the home folder's own parts."""
    marker, programs = Path("/tmp", MARK), home / "programs"
    programs.mkdir()
    for name in ("gs", "gswin64c", "convert", "dwebp"):
        (programs / name).write_text(f"#!/bin/sh\ntouch /tmp/{MARK}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    yield
    assert not marker.exists()
    assert {path.name for path in home.iterdir()} <= {"datasets", "outputs", "programs", "uploads"}


def assert_in_words(text: str, home: Path) -> None:
    """A refusal as a person may read it: no path, no traceback, no name of a class, nothing that a terminal obeys."""
    assert text
    assert str(home) not in text
    assert not re.search(r"Traceback|/tmp|site-packages|\.py\b|Error\b|Exception|<class|0x[0-9a-f]{6}", text), text
    assert text.isprintable()
    assert len(text) < 2000


def add(folder: Path, *files: tuple[str, bytes]) -> Report:
    """Take files in, and check what holds of each report."""
    report = uploads.add(folder, offer(folder.parent.parent, *files))
    for name, reason in report.refused:
        assert_in_words(f"{name} {reason}", folder.parent.parent)
    kept = {path.name for path in folder.iterdir() if path.name != paths.CACHE}
    pictures_kept = {path.name for path in dataset.image_files(folder)}
    assert set(report.added) <= pictures_kept
    assert all(name in pictures_kept or name.endswith(".txt") for name in kept)
    assert all(path.is_file() and not path.is_symlink() for path in folder.iterdir() if path.name in kept)
    return report


@pytest.mark.parametrize(("name", "data", "expected"), GOOD.values(), ids=GOOD.keys())
def test_an_odd_picture_is_taken_as_a_viewer_shows_it(folder: Path, name: str, data: bytes, expected: Taken) -> None:
    report = add(folder, (name, data))
    assert report.refused == []
    (example,) = dataset.read(folder)
    assert (example.width, example.height) == expected.size
    decoded = images.decode(example.path.read_bytes())
    assert decoded.size == expected.size
    end = (decoded.width - 1, decoded.height - 1)
    for corner, color in (((0, 0), expected.first), (end, expected.last)):
        assert color is None or decoded.getpixel(corner) == pytest.approx(color, abs=6)
    small = images.thumbnail(example.path.parent, example.path)
    assert b"SECRET CAMERA" not in small
    assert b"Exif" not in small
    endings = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp"}
    with Image.open(example.path) as image:
        assert example.path.suffix == endings[str(image.format)], "that of what is inside"


@pytest.mark.parametrize(("name", "data", "expected"), BAD.values(), ids=BAD.keys())
def test_what_is_no_sound_picture_is_refused_in_words(folder: Path, name: str, data: bytes, expected: Refused) -> None:
    report = add(folder, (name, data), ("good.png", SOUND))
    assert report.added == ["good.png"]
    ((refused, reason),) = report.refused
    assert refused == name
    assert expected.words in reason


def read_apart(folder: Path, code: str, files: list[tuple[str, Path]], then: str = "") -> CompletedProcess[str]:
    """Take files in by the process of the page, with some of its program changed."""
    program = f"from trainer.data import images, sandbox\n{code}\nsandbox.main()\n{then}"
    offered = json.dumps([(name, str(path)) for name, path in files])
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, input=offered, timeout=HANG)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "least"), [(lambda: PICTURES, len(GOOD) // 2), (lambda: map(containers.zip_data, ZIPS), 3)]
)
def test_the_process_that_takes_them_in_stays_small(
    folder: Path, home: Path, data: Callable[[], Iterable[bytes]], least: int
) -> None:
    """Its own word for it: after a fork, getrusage counts the peak of the tests' process as the child's."""
    ending = "png" if data() is PICTURES else "zip"
    files = offer(home, *((f"{number}.{ending}", each) for number, each in enumerate(data())))
    done = read_apart(folder, "", files, "print(open('/proc/self/status').read())")
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert peak, done.stderr
    assert int(peak[1]) <= 700 * 1024
    assert len(dataset.image_files(folder)) > least


@pytest.mark.slow
def test_a_picture_that_ends_its_reader_is_named(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too little memory for one of them, that one is refused, and the others are kept."""
    large = pictures.png(7000, 7000, 8, 0, bytes(7001 * 7000))
    done = read_apart(folder, "sandbox.MEMORY = 40 * 2**20", offer(home, ("large.png", large)))
    assert '["large.png", "needs too much memory"]' in done.stdout, done
    assert uploads.add(folder, offer(home, ("large.png", large), ("good.png", SOUND))).refused == []


@pytest.mark.slow
def test_a_reader_that_computes_for_ever_is_ended(folder: Path, home: Path) -> None:
    code = "sandbox.SECONDS = 1\ndef hang(*_):\n    while True: pass\nimages.upright = hang"
    done = read_apart(folder, code, offer(home, ("good.png", SOUND)))
    assert done.returncode < 0  # by the signal


@pytest.mark.parametrize(("data", "expected"), texts.CAPTIONS.values(), ids=texts.CAPTIONS.keys())
def test_a_caption_is_read_right_or_refused(folder: Path, data: bytes, expected: str | Refused) -> None:
    report = add(folder, ("a.png", SOUND), ("a.txt", data))
    (example,) = dataset.read(folder)
    if isinstance(expected, Refused):
        assert [(name, expected.words in reason) for name, reason in report.refused] == [("a.txt", True)]
        assert example.caption == ""
        caption_file(example.path).write_bytes(data)  # put there by hand, it does no harm, and is reported
        (example,) = dataset.read(folder)
        assert REPLACEMENT in example.caption or len(data) > MAX_BYTES
        messages = [problem.message for problem in checks.examine(folder).problems]
        assert "The caption has unreadable characters." in messages or len(data) > MAX_BYTES
        return
    assert report.refused == []
    assert example.caption == expected
    assert example.caption.isprintable()
    items = image_grid.cards(image_grid.read("rin", ""), image_grid.Selection())["items"]
    # Line breaks are kept. It is a value, which the template puts into the page as text.
    assert items[0]["caption"].replace("\n", " ") == expected


@pytest.mark.parametrize("name", texts.NAMES, ids=ascii)
def test_a_name_is_never_a_path(folder: Path, name: str) -> None:
    first, second = (pictures.saved(pictures.two(size=(80, side)), "PNG") for side in (50, 60))
    report = add(folder, (name, first), (name, second))  # and two of one name do not replace each other
    kept = [path.name for path in folder.iterdir() if path.name != paths.CACHE]
    if name == "a.mask.png":  # by its name a mask, of an image that is not there
        assert [reason for _, reason in report.refused] == ["no image of this name for the mask"] * 2
        assert kept == []
        return
    assert len(report.added) == len(set(kept)) == 2, report
    assert all(re.fullmatch(r"[\w-]{1,64}\.png", name) for name in kept)


def test_of_a_moving_picture_the_first_frame_is_used(folder: Path) -> None:
    _, data, _ = GOOD["png animated"]
    report = add(folder, ("a.png", data), ("b.png", SOUND))
    assert (len(report.added), report.animated) == (2, 1)
    assert "1 image is animated; only its first frame is used." in report.sentence()


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_is_taken_file_by_file(folder: Path, name: str) -> None:
    _, kept, words = ZIPS[name]
    report = add(folder, ("set.zip", containers.zip_data(name)))
    assert [path.name for path in (folder / paths.CACHE).iterdir()] == ["upload.lock"]
    assert len(report.added) == kept, report
    assert words in " ".join(f"{name} {reason}" for name, reason in report.refused)


def test_there_is_an_end_to_what_is_taken_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [containers.picture(number) for number in range(6)]
    archive = containers._zip({f"{number}.png": image for number, image in enumerate(data[:5])})
    monkeypatch.setattr(uploads, "MAX_TOTAL", sum(map(len, data[:3])) + 1)
    report = add(folder, ("set.zip", archive))
    assert report.refused == [(f"{number}.png", "too large when unpacked") for number in (3, 4)]
    monkeypatch.setattr(uploads, "MAX_ENTRIES", 2)
    assert ("set.zip", "only its first 2 files were read") in add(folder, ("set.zip", archive)).refused
    monkeypatch.setattr(uploads, "MAX_IMAGES", 4)
    report = add(folder, ("3.png", data[3]), ("4.png", data[4]))
    assert report.refused == [("4.png", "a dataset holds at most 4 images")]
    monkeypatch.setattr(storage, "RESERVED", 2**60)
    assert add(folder, ("5.png", data[5])).refused == [("5.png", "the disk is full")]


def test_links_and_pipes_in_a_folder_are_left_alone(folder: Path, home: Path) -> None:
    secret = home / "outputs" / "secret"
    secret.with_suffix(".txt").write_text("secret")
    for path in (secret.with_suffix(".png"), folder / "a.png", folder / "c.png"):
        path.write_bytes(SOUND)
    (folder / "a.txt").symlink_to(secret.with_suffix(".txt"))
    (folder / "b.png").symlink_to(secret.with_suffix(".png"))
    digest = dataset.digest(dataset.read(folder))
    (folder / "a.mask.png").symlink_to(secret.with_suffix(".png"))
    for pipe in ("c.mask.png", "c.txt", "d.png"):
        os.mkfifo(folder / pipe)
    (folder / "e.png").mkdir()
    (folder / "loop").symlink_to(folder)
    assert [(example.name, example.caption) for example in dataset.read(folder)] == [("a.png", ""), ("c.png", "")]
    assert [dataset.read_mask(folder / name) for name in ("a.png", "c.png")] == [b"", b""]
    assert dataset.digest(dataset.read(folder)) == digest
    checks.examine(folder)


@pytest.mark.parametrize(("data", "words"), ADAPTERS.values(), ids=ADAPTERS.keys())
def test_a_wrong_adapter_is_refused_before_it_is_used(home: Path, data: bytes, words: str) -> None:
    path = containers.write(home / "outputs", "x.safetensors", data)
    with pytest.raises(UserError) as caught:
        reader.read(path)
    assert words in caught.value.message
    assert_in_words(str(caught.value), home)
    html = download.take(str(path))  # as the page shows it
    assert "<script" not in html
    assert str(home) not in html
    assert len(html) < 20_000


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_base_whose_weights_can_hold_programs_is_refused(tiny_sd: Path, tmp_path: Path, part: str) -> None:
    """Said by who looks at it, and not loaded by who does not look."""
    base = tmp_path / "uploads" / "base"
    shutil.copytree(tiny_sd, base)
    (weights,) = (base / part).glob("*.safetensors")
    weights.unlink()
    name = "pytorch_model.bin" if part == "text_encoder" else weights.with_suffix(".bin").name
    (base / part / name).write_bytes(pictures.pickled())
    with pytest.raises(UserError, match=r"weights of the base model 'base' are in \.bin files") as caught:
        families.load(ModelConfig(base=str(base)), torch.device("cpu"), torch.float32)
    assert "safetensors" in caught.value.remedy
    assert_in_words(str(caught.value).replace("\n", " "), tmp_path)
    assert detect.glance(str(base)) is None
    with pytest.raises(UserError, match="'base' cannot be loaded"):
        loading.load_pipeline(base, detect.look(tiny_sd), None, torch.float32)


def test_metadata_are_text_and_no_more(home: Path) -> None:
    odd = {"ss_output_name": "<script>alert(1)</script>", "ss_steps": "1e999", "ss_tag_frequency": "{" * 10_000}
    odd |= {"ss_network_args": "[1]", "ss_sd_model_name": "/home/a/b.ckpt", "limner.config": "[" * 5000}
    odd |= {"modelspec.title": "x" * 100_000, "modelspec.thumbnail": "data:text/html;base64,PHNj"}
    odd["lora_adapter_metadata"] = "[" * 100_000
    parts = {"lora_down.weight": containers._at(0, 4, (1, 1)), "lora_up.weight": containers._at(4, 8, (1, 1))}
    parts["alpha"] = containers._at(8, 12, ())
    header = {"__metadata__": odd, **{f"{containers.NAME}.{key}": value for key, value in parts.items()}}
    path = containers.write(home / "outputs", "x.safetensors", containers.raw(header, struct.pack("<3f", 1, 1, 1)))
    html = adapter_choices.describe(path).html
    assert "<script" not in html
    assert "<img" not in html
    assert len(unescape(html)) < 30_000
    assert summary.describe(safetensors_reader.read(path))["bytes"] > 100_000
