"""Captions that a model proposes: kept, discarded, undone; what was typed meanwhile waits for a decision."""

from pathlib import Path

from trainer import paths
from trainer.data import dataset, proposals, undo
from trainer.data.caption_edits import Edit
from trainer.data.captions import read_caption


def propose(folder: Path, *numbers: str) -> list[Edit]:
    edits = [Edit(f"{number}.png", read_caption(folder / f"{number}.png"), f"proposed {number}") for number in numbers]
    proposals.add(folder, edits)
    return edits


def test_proposals_wait_until_they_are_kept_or_discarded(character: Path) -> None:
    before = read_caption(character / "01.png")
    first, second, third = propose(character, "01", "02", "03")
    assert read_caption(character / "01.png") == before
    assert proposals.read(character) == {"01.png": first, "02.png": second, "03.png": third}
    assert proposals.keep(character, ["01.png", "no such.png"]) == 1
    assert read_caption(character / "01.png") == "proposed 01"
    proposals.discard(character, ["02.png"])
    assert list(proposals.read(character)) == ["03.png"]
    assert proposals.keep(character) == 1
    assert proposals.read(character) == {}
    assert undo.undo(character) == undo.Undone("automatic captions", 1, 0)
    assert undo.undo(character) == undo.Undone("automatic captions", 1, 0)
    assert read_caption(character / "01.png") == before


def test_a_caption_typed_meanwhile_is_replaced_only_by_name(character: Path) -> None:
    propose(character, "01", "02")
    dataset.write_caption(character / "01.png", "typed meanwhile")
    assert proposals.keep(character) == 1
    assert read_caption(character / "01.png") == "typed meanwhile"
    assert list(proposals.read(character)) == ["01.png"]
    assert proposals.keep(character, ["01.png"]) == 1
    assert undo.undo(character)
    assert read_caption(character / "01.png") == "typed meanwhile"


def test_newer_proposals_replace_older_ones(character: Path) -> None:
    propose(character, "01")
    proposals.add(character, [Edit("01.png", "", "newer"), Edit("02.png", "", "gone")])
    assert proposals.read(character)["01.png"].after == "newer"
    dataset.remove(character / "02.png")
    assert proposals.keep(character, ["02.png"]) == 0
    assert list(proposals.read(character)) == ["01.png"]
    path = character / paths.CACHE / proposals.FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"xxxx")
    assert proposals.read(character) == {}, "a damaged file proposes nothing"
    path.write_bytes(whole)
    proposals.discard(character)
    assert proposals.read(character) == {}
    assert not (character / paths.CACHE / proposals.FILE).exists()
