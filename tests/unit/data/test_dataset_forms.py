"""Datasets as other trainers have them: `.caption` files, a `metadata.jsonl`, folders named `10_kim woman`, masks."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.data.test_dataset import png
from trainer.cli import commands
from trainer.data import captions, dataset, image_stats, uploads


def rows(**texts: str) -> str:
    entries = ({"file_name": name, "text": text} for name, text in texts.items())
    return "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\nnot json\n[]\n"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of each form: a.png has a text of three forms, b.png of two, c.png in the metadata alone."""
    for name in ("a.png", "b.png", "c.png", "d.png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "a.txt").write_text("of a text")
    (tmp_path / "a.caption").write_text("of a caption")
    (tmp_path / "b.caption").write_text("of\nb caption")
    texts = {"a.png": "of metadata", "b.png": "x", "c.png": "of\u2028metadata"}
    (tmp_path / "metadata.jsonl").write_text(rows(**texts), encoding="utf-8")
    return tmp_path


def test_captions_of_each_form_are_read_and_the_text_file_counts(foreign: Path) -> None:
    texts = {example.name: example.caption for example in dataset.read(foreign)}
    assert texts == {"a.png": "of a text", "b.png": "of b caption", "c.png": "of metadata", "d.png": ""}
    assert captions.read_captions(foreign / "b.png") == ("of", "b caption")
    dataset.write_caption(foreign / "c.png", "mine")
    assert captions.read_caption(foreign / "c.png") == "mine"
    assert "of metadata" in (foreign / "metadata.jsonl").read_text(), "what others wrote stays"
    (foreign / "metadata.jsonl").write_text(rows(**{"d.png": "changed since"}))
    assert captions.read_caption(foreign / "d.png") == "changed since"


def test_captions_of_each_form_are_uploaded(home: Path, foreign: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in foreign.iterdir() if path.is_file())
    for number, path in enumerate(path for path in paths if path.suffix == ".png"):
        path.write_bytes(png((number, 0, 0)))  # of images with equal bytes, one would be kept
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in paths:
            file.write(path, f"set/{path.name}")
    folder = dataset.create("rin")
    report = uploads.add(folder, [("all.zip", archive)])
    assert report.refused == []
    texts = {example.name: example.caption for example in dataset.read(folder)}
    assert texts == {"a.png": "of a text", "b.png": "of b caption", "c.png": "of metadata", "d.png": ""}


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    folder = tmp_path / "img"
    for name, count in (("10_kim woman", 2), ("15_kim_hat", 1), ("0_off", 1), ("logs", 1)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(png((number, count, 7)))
    (folder / "10_kim woman" / "1.txt").write_text("kim, smiling")
    return folder


def test_repeats_weigh_the_folders_of_a_dataset(kohya: Path) -> None:
    examples = dataset.read(kohya, "kmx2")
    assert Counter((example.path.parent.name, example.caption) for example in examples) == {
        ("10_kim woman", "kim woman"): 2,
        ("10_kim woman", "kim, smiling"): 2,
        ("15_kim_hat", "kim hat"): 3,
    }
    assert {example.trigger for example in examples} == {"kmx2"}
    (kohya / "own.png").write_bytes(png())
    assert [example.name for example in dataset.read(kohya)] == ["own.png"], "images of its own: no form of kohya's"


def test_check_says_what_it_takes_for_what(foreign: Path, kohya: Path) -> None:
    (foreign / "masks").mkdir()
    (foreign / "masks" / "a.png").write_bytes(png(mode="L", color=255))
    output = CliRunner().invoke(commands.app, ["check", str(foreign)]).output
    assert "1 caption read from .caption files." in output
    assert output.count("a.caption") == 1, "that of a.png is not read, that of b.png is"
    assert "b.caption" not in output
    assert "1 caption read from metadata.jsonl." in output
    assert "1 mask," in output
    output = CliRunner().invoke(commands.app, ["check", str(kohya)]).output
    assert "10_kim woman: 2 images, seen 2 times in an epoch; those without a caption get 'kim woman'." in output
    assert "15_kim_hat: 1 image, seen 3 times" in output
    assert "No caption." not in output


def test_check_goes_on_with_the_images_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png())
    measure, calls = image_stats.measure, list[int]()

    def interrupted(data: bytes) -> image_stats.ImageStats:
        calls.append(len(data))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(data)

    monkeypatch.setattr(commands, "MEASURED_AT_ONCE", 2)
    monkeypatch.setattr(image_stats, "measure", interrupted)
    CliRunner().invoke(commands.app, ["check", str(tmp_path)])
    assert len(image_stats.known(tmp_path)) == 2, "the first two"
    assert "5 images." in CliRunner().invoke(commands.app, ["check", str(tmp_path)]).output
    assert len(calls) == 4 + 3
