"""Changes to many captions: shown before they are made, taken back level by level, never losing what is newer."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer import dataset, editing
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
    return [dataset.read_caption(path) for path in dataset.pictures(folder)]


def test_a_change_is_shown_before_it_is_made(folder: Path) -> None:
    before = captions(folder)
    edit, changes = editing.Edit, editing.edits(folder, editing.replaced("red hat", "blue cap"))
    assert changes == [
        edit("0.png", "red hat, smiling", "blue cap, smiling"), edit("1.png", "rin, red hat", "rin, blue cap"),
    ]  # fmt: skip
    assert captions(folder) == before
    editing.make(folder, changes, "replace")
    assert captions(folder) == ["blue cap, smiling", "rin, blue cap", ""]
    assert editing.edits(folder, editing.in_front("rin"), ["0.png"]) == [
        editing.Edit("0.png", "blue cap, smiling", "rin, blue cap, smiling")
    ]


def test_several_levels_are_taken_back_and_newer_words_stay(folder: Path) -> None:
    begun = captions(folder)
    editing.make(folder, editing.edits(folder, editing.in_front("rin")), "one")
    editing.make(folder, editing.edits(folder, editing.replaced("red", "blue")), "two")
    dataset.write_caption(folder / "0.png", "my own words")
    assert editing.last(folder) == "two"
    assert editing.undo(folder) == editing.Undone("two", 1, 1)
    assert captions(folder) == ["my own words", "rin, red hat", "rin"]
    dataset.remove(folder / "2.png")
    assert editing.undo(folder) == editing.Undone("one", 0, 1)
    assert editing.last(folder) == ""
    assert editing.undo(folder) is None
    assert captions(folder) == ["my own words", begun[1]]


def test_only_so_many_levels_are_kept_and_a_damaged_one_is_passed_over(folder: Path) -> None:
    for number in range(editing.LEVELS + 5):
        editing.make(folder, editing.edits(folder, lambda _, number=number: f"caption {number}"), str(number))
    levels = sorted((folder / dataset.CACHE / "undo").glob("*.json"))
    assert len(levels) == editing.LEVELS
    levels[-1].write_text("{")
    assert editing.last(folder) == str(editing.LEVELS + 3)
    assert editing.undo(folder) is not None
    editing.make(folder, [], "nothing")
    assert editing.last(folder) == str(editing.LEVELS + 2)


def test_a_template_is_filled_in_once(folder: Path) -> None:
    change = editing.filled(TEMPLATE, "rin", "woman")
    assert [change(one) for one in captions(folder)] == [
        "rin, a woman, red hat, smiling",
        "rin, a woman, red hat",
        "rin, a woman",
    ]
    for wrong, words in (("{trigger}, {name}, {caption}", "cannot fill in {name}"), ("{trigger}", "no {caption}")):
        with pytest.raises(UserError) as caught:
            editing.filled(wrong, "rin", "woman")
        assert words in str(caught.value)


@given(st.text(max_size=60))
def test_filling_in_twice_is_filling_in_once(caption: str) -> None:
    change = editing.filled(TEMPLATE, "rin", "woman")
    once = dataset.one_line(change(dataset.one_line(caption)))
    assert dataset.one_line(change(once)) == once


def test_replacing_leaves_no_empty_tags_and_touches_nothing_else() -> None:
    assert editing.replaced("red hat", "")("rin, red hat, smiling") == "rin, smiling"
    assert editing.replaced("x", "y")("odd ,, spacing ,") == "odd ,, spacing ,"
    assert editing.with_tag("white background")("rin") == "rin, white background"
    assert editing.with_tag("white background")("a White background") == "a White background"
    assert editing.with_tag("sun")("") == "sun"


def test_tags_are_counted_once_a_caption() -> None:
    assert editing.tags(["a, b, a", "b , c", ""]) == {"a": 1, "b": 2, "c": 1}
