"""Several uploads at once, each by a process of its own as the page starts it: nothing is lost or mixed up."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.data.test_dataset import png
from trainer import paths, storage
from trainer.data import caption_edits, dataset, sandbox
from trainer.data.captions import read_caption
from trainer.errors import UserError

TOGETHER, EACH = 4, 15


def together(work: Callable[[int], object], count: int) -> list[object]:
    """Do something in several threads that begin at the same moment."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> object:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_uploads_at_once_keep_images_with_their_captions(home: Path, tmp_path: Path) -> None:
    folder = dataset.create("rin")
    content: dict[bytes, str] = {}
    uploads = []
    for number in range(TOGETHER):
        sources = []
        for place in range(EACH):  # the same names in all uploads
            image = tmp_path / f"u{number}-{place}.png"
            image.write_bytes(png(number * EACH + place))
            text = tmp_path / f"u{number}-{place}.txt"
            text.write_text(f"caption {number} {place}")
            content[image.read_bytes()] = f"caption {number} {place}"
            sources += [(f"{place:02d}.png", image), (f"{place:02d}.txt", text)]
        uploads.append(sources)
    reports = together(lambda number: sandbox.add(folder, uploads[number]), TOGETHER)
    assert sum(len(report.added) for report in reports) == TOGETHER * EACH
    assert {path.read_bytes(): read_caption(path) for path in dataset.image_files(folder)} == content
    assert not list(folder.glob(f".*{storage.PART}"))


def test_captions_changed_at_once_lose_no_change(character: Path) -> None:
    def add_tag(number: int) -> None:
        with dataset.captions_lock(character):
            edits = caption_edits.preview(character, caption_edits.add_tag(f"tag{number}"))
            caption_edits.apply(character, edits, f"tag {number}")

    together(add_tag, 4)
    for picture in dataset.image_files(character):
        assert {f"tag{number}" for number in range(4)} <= set(caption_edits.split_tags(read_caption(picture)))
    assert len(list((character / paths.CACHE / "undo").iterdir())) == 4


def test_masks_are_paired_with_their_images(home: Path, tmp_path: Path) -> None:
    folder = dataset.create("rin")

    def source(name: str, data: bytes) -> tuple[str, Path]:
        path = tmp_path / name.replace("/", "_")
        path.write_bytes(data)
        return name, path

    masks = [png("white") + bytes([number]) for number in range(6)]  # each other bytes, the same image
    names = ["01.png", "02.png", "set/03.png", "images/04.jpg", "05.png"]
    places = ["01.mask.png", "02-masklabel.png", "set/masks/03.png", "mask/04.png", "set/Masks/none.png"]
    files = [(name, png(number)) for number, name in enumerate(names, 1)] + list(zip(places, masks, strict=False))
    report = sandbox.add(folder, [source(name, data) for name, data in files])
    assert (sorted(report.added), report.masks) == (["01.png", "02.png", "03.png", "04.png", "05.png"], 4)
    assert report.refused == [("none.png", "no image of this name for the mask")]
    assert "4 masks came with them." in report.sentence()
    assert [path.name for path in dataset.image_files(folder)] == [f"0{number}.png" for number in range(1, 6)]
    assert [bool(dataset.read_mask(path)) for path in dataset.image_files(folder)] == [True] * 4 + [False]
    # One that comes later finds its image by name.
    later = sandbox.add(folder, [source("05.mask.png", masks[5])])
    assert (later.added, later.masks) == ([], 1)
    assert dataset.read_mask(folder / "05.png")
    (folder / "masks").mkdir()
    (folder / "06.png").write_bytes(png(6))
    (folder / "masks" / "06.png").write_bytes(masks[5])
    for name, mask_file in (("05.png", "05.mask.png"), ("06.png", "masks/06.png")):
        assert dataset.mask_file(folder / name) == folder / mask_file
        dataset.remove(folder / name)
        assert not (folder / mask_file).exists()
        assert dataset.restore_last(folder)
        assert dataset.read_mask(folder / name), "the bin keeps it under a name that no image has"


def test_a_new_image_does_not_get_the_caption_of_one_that_is_gone(home: Path, tmp_path: Path) -> None:
    folder = dataset.create("rin")
    (folder / "01.txt").write_text("a lost hat")
    (tmp_path / "new.png").write_bytes(png(1))
    (name,) = sandbox.add(folder, [("01.png", tmp_path / "new.png")]).added
    assert (name, read_caption(folder / name)) == ("01-2.png", "")


def test_what_is_restored_stays_together(home: Path, tmp_path: Path) -> None:
    """The caption of an image whose name is taken by now would be that of another image."""
    folder = dataset.create("rin")
    for name in ("01.txt", "02.caption"):
        (folder / name).write_text("a lost hat")
    for number in (1, 2):
        (folder / f"0{number}.png").write_bytes(png(number))
    dataset.remove(folder / "01.png", folder / "02.png")
    (tmp_path / "new.png").write_bytes(png(3))
    assert sandbox.add(folder, [("01.jpg", tmp_path / "new.png")]).added == ["01.png"]
    with pytest.raises(UserError, match="same name"):
        dataset.restore_last(folder)
    captions = {path.name: read_caption(path) for path in dataset.image_files(folder)}
    assert captions == {"01.png": "", "02.png": "a lost hat"}


def test_a_file_that_is_not_there_costs_no_other_one(home: Path, tmp_path: Path) -> None:
    folder = dataset.create("rin")
    (tmp_path / "good").write_bytes(png(1))
    sources = {"gone.png": "gone", "": "gone", "good.png": "good"}
    report = sandbox.add(folder, [(name, tmp_path / source) for name, source in sources.items()])
    assert report.added == ["good.png"]
    assert report.refused == [("gone.png", "did not arrive"), ("a file without a name", "did not arrive")]
