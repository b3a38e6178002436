"""Captions that a model proposes: kept, discarded, undone; what was typed meanwhile waits for a decision."""

from pathlib import Path

from trainer import paths
from trainer.data import caption_edits, dataset, undo
from trainer.data.caption_edits import Edit
from trainer.data.captions import read_caption


def propose(folder: Path, *numbers: str) -> list[Edit]:
    edits = [Edit(f"{number}.png", read_caption(folder / f"{number}.png"), f"proposed {number}") for number in numbers]
    caption_edits.propose(folder, edits)
    return edits


def test_proposals_wait_until_they_are_kept_or_discarded(character: Path) -> None:
    before = read_caption(character / "01.png")
    first, second, third = propose(character, "01", "02", "03")
    assert read_caption(character / "01.png") == before
    assert caption_edits.read_proposals(character) == {"01.png": first, "02.png": second, "03.png": third}
    assert caption_edits.keep_proposals(character, ["01.png", "no such.png"]) == 1
    assert read_caption(character / "01.png") == "proposed 01"
    caption_edits.discard_proposals(character, ["02.png"])
    assert list(caption_edits.read_proposals(character)) == ["03.png"]
    assert caption_edits.keep_proposals(character) == 1
    assert caption_edits.read_proposals(character) == {}
    assert undo.undo(character) == undo.Undone("automatic captions", 1, 0)
    assert undo.undo(character) == undo.Undone("automatic captions", 1, 0)
    assert read_caption(character / "01.png") == before


def test_a_caption_typed_meanwhile_is_replaced_only_by_name(character: Path) -> None:
    propose(character, "01", "02")
    dataset.write_caption(character / "01.png", "typed meanwhile")
    assert caption_edits.keep_proposals(character) == 1
    assert read_caption(character / "01.png") == "typed meanwhile"
    assert list(caption_edits.read_proposals(character)) == ["01.png"]
    assert caption_edits.keep_proposals(character, ["01.png"]) == 1
    assert undo.undo(character)
    assert read_caption(character / "01.png") == "typed meanwhile"


def test_newer_proposals_replace_older_ones(character: Path) -> None:
    propose(character, "01")
    caption_edits.propose(character, [Edit("01.png", "", "newer"), Edit("02.png", "", "gone")])
    assert caption_edits.read_proposals(character)["01.png"].after == "newer"
    dataset.remove(character / "02.png")
    assert caption_edits.keep_proposals(character, ["02.png"]) == 0
    assert list(caption_edits.read_proposals(character)) == ["01.png"]
    path = character / paths.CACHE / caption_edits.PROPOSALS
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"xxxx")
    assert caption_edits.read_proposals(character) == {}, "a damaged file proposes nothing"
    path.write_bytes(whole)
    caption_edits.discard_proposals(character)
    assert caption_edits.read_proposals(character) == {}
    assert not (character / paths.CACHE / caption_edits.PROPOSALS).exists()
