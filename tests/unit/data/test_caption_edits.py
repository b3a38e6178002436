"""Changes to many captions: previewed or proposed, undone level by level, never losing newer edits."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainer import paths
from trainer.data import caption_edits, dataset, sandbox, undo
from trainer.data.caption_edits import Edit
from trainer.data.captions import read_caption, read_captions
from trainer.errors import UserError


@pytest.fixture
def folder(home: Path) -> Path:
    made = dataset.create("rin")
    for number, caption in enumerate(["red hat, smiling", "rin, red hat", ""]):
        Image.new("RGB", (80, 80)).save(made / f"{number}.png")
        if caption:
            dataset.write_caption(made / f"{number}.png", caption)
    return made


def captions(folder: Path) -> list[str]:
    return [read_caption(path) for path in dataset.image_files(folder)]


def change(folder: Path, words: Callable[[str], str], title: str = "x", names: list[str] | None = None) -> list[Edit]:
    """Preview a change of captions, and make it."""
    before = captions(folder)
    edits = caption_edits.preview(folder, words, names)
    assert captions(folder) == before, "nothing is changed by a preview"
    caption_edits.apply(folder, edits, title)
    return edits


def test_a_change_is_shown_before_it_is_made(folder: Path) -> None:
    edits = [Edit("0.png", "red hat, smiling", "blue cap, smiling"), Edit("1.png", "rin, red hat", "rin, blue cap")]
    assert change(folder, caption_edits.replace_text("red hat", "blue cap")) == edits
    assert captions(folder) == ["blue cap, smiling", "rin, blue cap", ""]
    assert change(folder, caption_edits.add_trigger("rin"), names=["0.png"])[0].after == "rin, blue cap, smiling"
    assert captions(folder) == ["rin, blue cap, smiling", "rin, blue cap", ""]


def test_a_caption_a_line_stays_so_through_changes_and_undo(folder: Path, tmp_path: Path) -> None:
    image = folder / "0.png"
    (folder / "0.txt").write_text("red hat\n\nred hat, sad\n")
    for words, left in (
        (caption_edits.add_trigger("rin"), ("rin, red hat", "rin, red hat, sad")),
        (caption_edits.replace_tag("red hat", ""), ("sad",)),
        (caption_edits.add_tag("a\tb"), ("red hat, a b", "red hat, sad, a b")),
    ):
        change(folder, words)
        assert read_captions(image) == left
        assert undo.undo(folder) != undo.Undone("x", 0, 1), "what was written is what was said"
        assert read_captions(image) == ("red hat", "red hat, sad")
    (tmp_path / "later.txt").write_text("a hat\na cap\n")
    sandbox.add(folder, [("0.txt", tmp_path / "later.txt")])
    assert read_captions(image) == ("a hat", "a cap")

    def digests() -> list[str]:
        return [dataset.digest(dataset.read(folder), by_line=by_line) for by_line in (False, True)]

    whole, by_line = digests()
    (folder / "0.txt").write_text("a hat a\ncap\n")
    assert digests()[0] == whole
    assert digests()[1] != by_line, "a run that trains lines notices"


def test_several_levels_are_taken_back_and_newer_words_stay(folder: Path) -> None:
    begun = captions(folder)
    change(folder, caption_edits.add_trigger("rin"), "one")
    change(folder, caption_edits.replace_text("red", "blue"), "two")
    dataset.write_caption(folder / "0.png", "my own words")
    assert undo.last_title(folder) == "two"
    assert undo.undo(folder) == undo.Undone("two", 1, 1)
    assert captions(folder) == ["my own words", "rin, red hat", "rin"]
    dataset.remove(folder / "2.png")
    assert undo.undo(folder) == undo.Undone("one", 0, 1)
    assert (undo.last_title(folder), undo.undo(folder)) == ("", None)
    before = ["my own words", begun[1]]
    assert captions(folder) == before
    change(folder, lambda caption: f"miraxo {caption}", "prefix")
    dataset.write_caption(folder / "1.png", before[1])  # as if the page had been killed after the first
    assert undo.undo(folder) == undo.Undone("prefix", 1, 0)
    assert captions(folder) == before
    for number in range(undo.LEVELS + 5):
        change(folder, lambda _, number=number: f"caption {number}", str(number))
    assert len(list((folder / paths.CACHE / "undo").glob("*.json"))) == undo.LEVELS
    caption_edits.apply(folder, [], "nothing")
    assert undo.last_title(folder) == str(undo.LEVELS + 4), "what changes nothing is not a level"


def test_an_undo_level_that_cannot_be_read_is_passed_over(folder: Path) -> None:
    for title, word in (("first", "blue"), ("second", "green")):
        change(folder, lambda caption, word=word: f"{word} {caption}", title, ["0.png"])
    level = max((folder / paths.CACHE / "undo").glob("*.json"))
    data = level.read_bytes()
    for damaged in (b"", data[:-1], b"\xff" + data, b"[]", b"{}"):
        level.write_bytes(damaged)
        assert undo.last_title(folder) == "first", damaged
    assert undo.undo(folder) == undo.Undone("first", 0, 1)
    assert captions(folder)[0] == "green blue red hat, smiling"


def test_a_template_is_filled_in_once() -> None:
    fill = caption_edits.fill_template("{trigger}, a {class}, {caption}", "rin", "woman")
    assert fill("red hat, smiling") == "rin, a woman, red hat, smiling"
    assert fill("rin, red hat") == "rin, a woman, red hat"
    assert fill("") == "rin, a woman"
    for wrong, words in (("{trigger}, {name}, {caption}", "an unknown field {name}"), ("{trigger}", "no {caption}")):
        with pytest.raises(UserError, match=words):
            caption_edits.fill_template(wrong, "rin", "woman")


def test_texts_and_tags_are_replaced_and_touch_nothing_else() -> None:
    without, white = caption_edits.replace_text("red hat", ""), caption_edits.add_tag("white background")
    red, hat = caption_edits.replace_tag("red", "blue hat"), caption_edits.add_tag("hat")
    for words, before, after in (
        (without, "rin, red hat, smiling", "rin, smiling"),
        (without, "odd ,, spacing ,", "odd ,, spacing ,"),
        (white, "rin", "rin, white background"),
        (white, "a White background", "a White background"),
        (white, "", "white background"),
        (hat, "what, that", "what, that, hat"),
        (red, "rin, Red, red coat", "rin, blue hat, red coat"),
        (red, "rin,  red coat", "rin,  red coat"),
        (caption_edits.replace_tag("red", ""), "rin, red, smiling", "rin, smiling"),
    ):
        assert words(before) == after
    assert caption_edits.count_tags(["a, b, a", "b , c", ""]) == {"a": 1, "b": 2, "c": 1}


def propose(folder: Path, *numbers: str) -> list[Edit]:
    edits = [Edit(f"{number}.png", read_caption(folder / f"{number}.png"), f"proposed {number}") for number in numbers]
    caption_edits.propose(folder, edits)
    return edits


def test_proposals_wait_until_they_are_kept_or_discarded(character: Path) -> None:
    image = character / "01.png"
    before = read_caption(image)
    first, second, third = propose(character, "01", "02", "03")
    assert read_caption(image) == before
    assert caption_edits.read_proposals(character) == {"01.png": first, "02.png": second, "03.png": third}
    assert caption_edits.keep_proposals(character, ["01.png", "no such.png"]) == 1
    assert read_caption(image) == "proposed 01"
    caption_edits.discard_proposals(character, ["02.png"])
    assert list(caption_edits.read_proposals(character)) == ["03.png"]
    assert caption_edits.keep_proposals(character) == 1
    assert caption_edits.read_proposals(character) == {}
    for _ in range(2):
        assert undo.undo(character) == undo.Undone("automatic captions", 1, 0)
    assert read_caption(image) == before
    propose(character, "01", "02")
    dataset.write_caption(image, "typed meanwhile")
    assert caption_edits.keep_proposals(character) == 1
    assert read_caption(image) == "typed meanwhile"
    assert list(caption_edits.read_proposals(character)) == ["01.png"]
    assert caption_edits.keep_proposals(character, ["01.png"]) == 1, "by its name it is replaced"
    assert undo.undo(character)
    assert read_caption(image) == "typed meanwhile"


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
