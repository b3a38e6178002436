"""A backup is an ordinary zip; that of a project can be uploaded again."""

import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests.integration.runs.test_processes import limner, make
from tests.workers import Workers
from trainer.data import dataset, images, sandbox
from trainer.data.captions import read_captions


@pytest.fixture
def project(character: Path) -> Path:
    """A project with captions of several lines and of other forms, masks of each kind, and odd names."""
    (character / "01.txt").write_text("one caption\nanother caption\n")
    (character / "01.png").rename(character / "A picture (1) \u00e4.png")
    (character / "01.txt").rename(character / "A picture (1) \u00e4.txt")
    (character / "02.txt").rename(character / "02.caption")
    (character / "masks").mkdir()
    for number, mask in enumerate(("02.mask.png", "03-masklabel.png", "masks/04.png")):
        Image.new("L", (64, 64), 50 * number).save(character / mask)
    return character


def test_a_backup_of_a_project_can_be_uploaded(project: Path, home: Path) -> None:
    done = limner("export", "rin", home / "rin.zip")
    assert done.returncode == 0, done.stderr
    folder = dataset.create("mira")
    report = sandbox.add(folder, [("rin.zip", home / "rin.zip")])
    assert (len(report.added), report.masks, report.refused) == (14, 3, [])
    uploaded = {path.read_bytes(): path for path in dataset.image_files(folder)}
    for image in dataset.image_files(project):
        copy = uploaded.pop(image.read_bytes())
        assert read_captions(copy) == read_captions(image) != ()
        mask, copied = dataset.read_mask(image), dataset.read_mask(copy)
        assert bool(mask) == bool(copied)
        if mask:
            assert not ImageChops.difference(images.decode(mask), images.decode(copied)).getbbox()
    assert not uploaded


@pytest.mark.slow
def test_a_backup_of_a_run_holds_its_files(character: Path, tiny_sd: Path, home: Path, workers: Workers) -> None:
    run = make(str(tiny_sd), steps=2, resolution=64)
    assert workers.work(run) == 0
    assert limner("export", run.id, home / "run.zip").returncode == 0
    with zipfile.ZipFile(home / "run.zip") as archive:
        names = {name.removeprefix(f"{run.id}/") for name in archive.namelist()}
        assert archive.read(f"{run.id}/rin.safetensors") == run.export.read_bytes()
    assert {"config.toml", "events.jsonl", "checkpoints/000002/manifest.json"} < names
    assert not [name for name in names if name.startswith("ask/") or name.endswith(".lock")]


def test_what_runs_or_is_not_there_is_not_backed_up(character: Path, tiny_sd: Path, home: Path) -> None:
    run = make(str(tiny_sd), steps=8, resolution=64)
    (run.folder / "ask" / "start").touch()
    done = limner("export", run.id, home / "x.zip")
    sentence = "This run is still running. Stop it first, or wait until it has ended.\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    for name in ("nobody", "../rin", "."):
        done = limner("export", name, home / "x.zip")
        assert done.returncode == 2
        assert "There is no project or run" in done.stderr
    assert not (home / "x.zip").exists()
