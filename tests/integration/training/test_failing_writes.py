"""The n-th durable write fails, for each n until none is left: what was there is whole, and the work can be done again.

As SQLite tests it. The disk is full when a file is opened, or breaks when it is synced.
"""

import errno
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainer import config, fault_injection, home_check, runs
from trainer.data import caption_edits, captions, dataset, image_stats, images, undo, uploads
from trainer.errors import explain_disk
from trainer.runs import backup
from ui.state import page_memory, saved_settings

SENTENCES = {"enospc": "The disk is full.", "eio": "The disk cannot be read or written to."}


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def _upload(home: Path) -> None:
    report = uploads.add(home / "datasets" / "rin", [(path.name, path) for path in sorted((home / "new").iterdir())])
    for _, reason in report.refused:  # the image, and then its caption and mask, which have no image
        if reason in SENTENCES.values():
            raise OSError(errno.ENOSPC if reason == SENTENCES["enospc"] else errno.EIO, "as the report says")


def _edit(home: Path) -> None:
    folder = home / "datasets" / "rin"
    edits = caption_edits.preview(folder, caption_edits.add_tag("new tag"))
    caption_edits.apply(folder, edits[:3], "add a tag")


def _thumbnail(home: Path) -> None:
    images.thumbnail(home / "datasets" / "rin", home / "datasets" / "rin" / "01.png")


ACTIONS: dict[str, Callable[[Path], object]] = {
    "upload": _upload,
    "edit captions": _edit,
    "write a caption": lambda home: dataset.write_caption(home / "datasets" / "rin" / "01.png", "other"),
    "measure": lambda home: image_stats.measure_missing(home / "datasets" / "rin"),
    "thumbnail": _thumbnail,
    "create a run": lambda home: runs.create(config.build({"name": "rin", "dataset": "rin"})),
    "back up": lambda home: backup.write_project("rin", home / "rin.zip"),
    "restore": lambda home: backup.restore_here(home / "whole.zip", lambda name: None),
    "record": lambda home: home_check.record(home / "datasets" / "rin"),
    "remember": lambda home: page_memory.remember("rin", "trigger", "other"),
    "save settings": lambda home: saved_settings.save("mine", {"training": {"steps": 9}}),
}


@pytest.fixture
def used(character: Path, home: Path) -> Path:
    """A home in which something is already there of all kinds."""
    (home / "new").mkdir()
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (80, 80), color).save(home / "new" / f"new-{number}.png")
        (home / "new" / f"new-{number}.txt").write_text(f"a {color} image")
    Image.new("L", (80, 80), 255).save(home / "new" / "new-1.mask.png")
    page_memory.remember("rin", "trigger", "miraxo")
    backup.write_project("rin", home / "whole.zip")
    return home


@pytest.mark.parametrize("kind", SENTENCES)
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
def test_whichever_write_of_an_action_fails(
    used: Path, monkeypatch: pytest.MonkeyPatch, action: Callable[[Path], object], kind: str
) -> None:
    images_before = {path.name for path in dataset.image_files(used / "datasets" / "rin")}
    before = everything(used)
    monkeypatch.setenv("LIMNER_TEST", "1")
    failed = 0
    for number in range(1, 200):
        for counter in ("_writes", "_syncs"):
            monkeypatch.setattr(fault_injection, counter, itertools.count(1))
        monkeypatch.setenv("LIMNER_FAULT", f"{kind}@{number}")
        try:
            action(used)
        except OSError as error:
            explained = str(explain_disk(error))
        else:
            break
        failed += 1
        assert explained.startswith(SENTENCES[kind])
        monkeypatch.setenv("LIMNER_FAULT", "")
        after = everything(used)
        changed = {path for path in before if after.get(path) != before[path]}
        assert all(path.suffix == ".txt" for path in changed), "captions that were changed before, and can be undone"
        if changed:
            assert undo.undo(used / "datasets" / "rin")
        assert not list(used.rglob("*.part*")), number
        for image in dataset.image_files(used / "datasets" / "rin"):
            if image.name not in images_before:
                assert captions.read_caption(image), "no image without its caption"
        texts = {path.stem for path in (used / "datasets" / "rin").glob("new*.txt")}
        assert texts <= {path.stem for path in dataset.image_files(used / "datasets" / "rin")}
    assert failed == number - 1 >= 1
