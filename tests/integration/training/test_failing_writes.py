"""The n-th durable write fails, for each n until none is left: what was there is whole, and the work can be done again.

As SQLite tests it. The disk is full when a file is opened, or breaks when it is synced. At night each n has its turn.
"""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests import faults
from tests.integration.runs.test_processes import make
from tests.integration.training.test_faults import message, whole
from tests.workers import Workers
from trainer import config, runs, storage
from trainer.adapter_files import reader
from trainer.data import caption_edits, captions, dataset, image_stats, undo, uploads
from trainer.errors import explain_disk
from trainer.runs import Run, archive, backup
from ui.state import page_memory, run_settings

SENTENCES = {"enospc": "The disk is full.", "eio": "The disk cannot be read or written to."}


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.fixture
def finished(character: Path, tiny_sd: Path, workers: Workers) -> Run:
    """A run of two steps that has written all there is to write, fewer than 39 times; the cache is filled."""
    run = make(str(tiny_sd), steps=2, resolution=64)
    settings = run.config()
    changes = {"checkpoint": {"every": 1, "keep": 2}, "preview": {"every": 1}, "export": {"peft": True}}
    run.save_config(config.build(config.merge(settings.model_dump(mode="json"), changes)))
    assert workers.work(run) == 0
    return run


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([("eio", 9), ("enospc", 3)], marks=pytest.mark.slow, id="two"),
        pytest.param([("enospc", number) for number in range(1, 40)], marks=pytest.mark.nightly, id="all"),
    ],
)
def test_whichever_write_of_a_run_fails(
    character: Path, finished: Run, workers: Workers, home: Path, cases: list[tuple[str, int]]
) -> None:
    expected, before = finished.export.read_bytes()[-1000:], everything(home)
    failed = 0
    for kind, number in cases:
        run = runs.create(finished.config().model_copy(update={"record": config.Record()}))
        code = workers.work(run, f"{kind}@{number}")
        whole(run)
        run.config()
        after = everything(home)
        assert {path: after.get(path) for path in before} == before, number
        if run.export.exists():
            reader.read(run.export)
        if code == 0 and runs.look(run).state.warnings == runs.look(finished).state.warnings:
            break
        failed += 1
        if code:
            assert code == 1
            assert SENTENCES[kind] in message(run), number
            assert "resume or try again" in message(run)
        else:
            assert "could not be generated" in message(run), number
        assert workers.work(run) == 0, number
        assert run.export.read_bytes()[-1000:] == expected, number
        checksums = runs.look(run).state.sha256
        assert checksums == {name: storage.sha256(run.folder / name) for name in checksums}, number
        archive.delete(run)
    assert failed
    assert number < 39


# What the page and the command line write ------------------------------------------------------------------------


def _upload(home: Path) -> None:
    report = uploads.add(home / "datasets" / "rin", [(path.name, path) for path in sorted((home / "new").iterdir())])
    for _, reason in report.refused:  # the image, and then its caption and mask, which have no image
        if reason in SENTENCES.values():
            raise OSError(errno.ENOSPC if reason == SENTENCES["enospc"] else errno.EIO, "as the report says")


def _edit(home: Path) -> None:
    folder = home / "datasets" / "rin"
    edits = caption_edits.preview(folder, caption_edits.add_tag("new tag"))
    caption_edits.apply(folder, edits[:3], "add a tag")


ACTIONS: dict[str, Callable[[Path], object]] = {
    "upload": _upload,
    "edit captions": _edit,
    "write a caption": lambda home: dataset.write_caption(home / "datasets" / "rin" / "01.png", "other"),
    "measure": lambda home: image_stats.measure_missing(home / "datasets" / "rin"),
    "create a run": lambda home: runs.create(config.build({"name": "rin", "dataset": "rin"})),
    "back up": lambda home: backup.write_project("rin", home / "rin.zip"),
    "remember": lambda home: page_memory.remember("rin", "trigger", "other"),
    "save settings": lambda home: run_settings.save("mine", {"training": {"steps": 9}}),
}


@pytest.fixture
def used(character: Path, home: Path) -> Path:
    (home / "new").mkdir()
    for number, color in enumerate(("red", "blue")):
        Image.new("RGB", (80, 80), color).save(home / "new" / f"new-{number}.png")
        (home / "new" / f"new-{number}.txt").write_text(f"a {color} image")
    Image.new("L", (80, 80), 255).save(home / "new" / "new-1.mask.png")
    page_memory.remember("rin", "trigger", "miraxo")
    return home


@pytest.mark.parametrize("kind", SENTENCES)
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
def test_whichever_write_of_an_action_fails(used: Path, action: Callable[[Path], object], kind: str) -> None:
    images_before = {path.name for path in dataset.image_files(used / "datasets" / "rin")}
    before = everything(used)
    failed = 0
    for number in range(1, 200):
        try:
            with faults.injected(f"{kind}@{number}"):
                action(used)
        except OSError as error:
            explained = str(explain_disk(error))
        else:
            break
        failed += 1
        assert explained.startswith(SENTENCES[kind])
        after = everything(used)
        changed = {path for path in before if after.get(path) != before[path]}
        assert all(path.suffix == ".txt" for path in changed), "captions that were changed before, and can be undone"
        if changed:
            assert undo.undo(used / "datasets" / "rin")
        assert not list(used.rglob("*.part*")), number
        assert not list((used / "outputs").glob("20*")), "nothing stays of a run that could not be created"
        for image in dataset.image_files(used / "datasets" / "rin"):
            if image.name not in images_before:
                assert captions.read_caption(image), "no image without its caption"
        texts = {path.stem for path in (used / "datasets" / "rin").glob("new*.txt")}
        assert texts <= {path.stem for path in dataset.image_files(used / "datasets" / "rin")}
    assert failed == number - 1 >= 1
