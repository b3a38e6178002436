"""Changes to many captions: previewed or proposed, undone level by level, never losing newer edits."""

from pathlib import Path

import pytest
from PIL import Image

from trainer import paths
from trainer.data import caption_edits, dataset, sandbox, undo
from trainer.data.caption_edits import Edit
from trainer.data.captions import read_caption, read_captions
from trainer.errors import UserError

TEMPLATE = "{trigger}, a {class}, {caption}"


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


def test_a_change_is_shown_before_it_is_made(folder: Path) -> None:
    before = captions(folder)
    changes = caption_edits.preview(folder, caption_edits.replace_text("red hat", "blue cap"))
    assert changes == [
        Edit("0.png", "red hat, smiling", "blue cap, smiling"),
        Edit("1.png", "rin, red hat", "rin, blue cap"),
    ]
    assert captions(folder) == before
    caption_edits.apply(folder, changes, "replace")
    assert captions(folder) == ["blue cap, smiling", "rin, blue cap", ""]
    assert caption_edits.preview(folder, caption_edits.add_trigger("rin"), ["0.png"]) == [
        Edit("0.png", "blue cap, smiling", "rin, blue cap, smiling")
    ]


def test_a_caption_a_line_stays_so_through_changes_and_undo(folder: Path, tmp_path: Path) -> None:
    image = folder / "0.png"
    (folder / "0.txt").write_text("red hat, smiling\n\nred hat, sad\n")
    caption_edits.apply(folder, caption_edits.preview(folder, caption_edits.add_trigger("rin")), "rin")
    assert read_captions(image) == ("rin, red hat, smiling", "rin, red hat, sad")
    undo.undo(folder)
    assert read_captions(image) == ("red hat, smiling", "red hat, sad")
    (folder / "0.txt").write_text("red hat\nred hat, sad\n")
    for change, left in ((caption_edits.replace_tag("red hat", ""), ("sad",)), (caption_edits.add_tag("a\tb"), None)):
        caption_edits.apply(folder, caption_edits.preview(folder, change), "x")
        assert read_captions(image) == (left or ("red hat, a b", "red hat, sad, a b"))
        assert undo.undo(folder) != undo.Undone("x", 0, 1), "what was written is what was said"
        assert read_captions(image) == ("red hat", "red hat, sad")
    (tmp_path / "later.txt").write_text("a hat\na cap\n")
    sandbox.add(folder, [("0.txt", tmp_path / "later.txt")])
    assert read_captions(image) == ("a hat", "a cap")
    examples = dataset.read(folder)
    before = [dataset.digest(examples, by_line=by_line) for by_line in (False, True)]
    (folder / "0.txt").write_text("a hat a\ncap\n")
    after = [dataset.digest(dataset.read(folder), by_line=by_line) for by_line in (False, True)]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False), "a run that trains lines notices"


def test_several_levels_are_taken_back_and_newer_words_stay(folder: Path) -> None:
    begun = captions(folder)
    caption_edits.apply(folder, caption_edits.preview(folder, caption_edits.add_trigger("rin")), "one")
    caption_edits.apply(folder, caption_edits.preview(folder, caption_edits.replace_text("red", "blue")), "two")
    dataset.write_caption(folder / "0.png", "my own words")
    assert undo.last_title(folder) == "two"
    assert undo.undo(folder) == undo.Undone("two", 1, 1)
    assert captions(folder) == ["my own words", "rin, red hat", "rin"]
    dataset.remove(folder / "2.png")
    assert undo.undo(folder) == undo.Undone("one", 0, 1)
    assert undo.last_title(folder) == ""
    assert undo.undo(folder) is None
    assert captions(folder) == ["my own words", begun[1]]
    before = captions(folder)
    caption_edits.apply(folder, caption_edits.preview(folder, lambda caption: f"miraxo {caption}"), "prefix")
    dataset.write_caption(folder / "1.png", before[1])  # as if the page had been killed after the first
    assert undo.undo(folder) == undo.Undone("prefix", 1, 0)
    assert captions(folder) == before
    for number in range(undo.LEVELS + 5):
        change = caption_edits.preview(folder, lambda _, number=number: f"caption {number}")
        caption_edits.apply(folder, change, str(number))
    assert len(list((folder / paths.CACHE / "undo").glob("*.json"))) == undo.LEVELS
    caption_edits.apply(folder, [], "nothing")
    assert undo.last_title(folder) == str(undo.LEVELS + 4), "what changes nothing is not a level"


def test_an_undo_level_that_cannot_be_read_is_passed_over(folder: Path) -> None:
    for title, word in (("first", "blue"), ("second", "green")):
        change = caption_edits.preview(folder, lambda caption, word=word: f"{word} {caption}", ["0.png"])
        caption_edits.apply(folder, change, title)
    level = sorted((folder / paths.CACHE / "undo").glob("*.json"))[-1]
    data = level.read_bytes()
    for damaged in (b"", data[:-1], b"\xff" + data, b"[]", b"{}"):
        level.write_bytes(damaged)
        assert undo.last_title(folder) == "first", damaged
    assert undo.undo(folder) == undo.Undone("first", 0, 1)
    assert captions(folder)[0] == "green blue red hat, smiling"


def test_a_template_is_filled_in_once(folder: Path) -> None:
    change = caption_edits.fill_template(TEMPLATE, "rin", "woman")
    assert [change(caption) for caption in captions(folder)] == [
        "rin, a woman, red hat, smiling",
        "rin, a woman, red hat",
        "rin, a woman",
    ]
    for wrong, words in (("{trigger}, {name}, {caption}", "an unknown field {name}"), ("{trigger}", "no {caption}")):
        with pytest.raises(UserError) as caught:
            caption_edits.fill_template(wrong, "rin", "woman")
        assert words in str(caught.value)


def test_texts_and_tags_are_replaced_and_touch_nothing_else() -> None:
    assert caption_edits.replace_text("red hat", "")("rin, red hat, smiling") == "rin, smiling"
    assert caption_edits.replace_text("x", "y")("odd ,, spacing ,") == "odd ,, spacing ,"
    assert caption_edits.add_tag("white background")("rin") == "rin, white background"
    assert caption_edits.add_tag("white background")("a White background") == "a White background"
    assert caption_edits.add_tag("sun")("") == "sun"
    assert caption_edits.add_tag("hat")("what, that") == "what, that, hat"
    change = caption_edits.replace_tag("red", "blue hat")
    assert change("rin, Red, red coat") == "rin, blue hat, red coat"
    assert caption_edits.replace_tag("red", "")("rin, red, smiling") == "rin, smiling"
    assert caption_edits.count_tags(["a, b, a", "b , c", ""]) == {"a": 1, "b": 2, "c": 1}
    assert change("rin,  red coat") == "rin,  red coat"


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
    propose(character, "01", "02")
    dataset.write_caption(character / "01.png", "typed meanwhile")
    assert caption_edits.keep_proposals(character) == 1
    assert read_caption(character / "01.png") == "typed meanwhile"
    assert list(caption_edits.read_proposals(character)) == ["01.png"]
    assert caption_edits.keep_proposals(character, ["01.png"]) == 1, "by its name it is replaced"
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
