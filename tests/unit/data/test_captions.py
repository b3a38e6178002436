"""Captions in the encodings that people's files have, and with class words for triggers."""

from pathlib import Path

import pytest

from trainer.data import captions
from trainer.data.captions import REPLACEMENT, decode_text, of_class, with_trigger, without_trigger


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("1girl, 红色头发的女孩", "gbk"), ("あかい かみの おんなのこ", "shift-jis"), ("рыжая девушка", "cp1251")],
)
def test_a_text_in_another_encoding_is_no_row_of_odd_letters(text: str, encoding: str) -> None:
    decoded = decode_text(text.encode(encoding))
    assert REPLACEMENT in decoded
    assert not any("À" <= letter <= "ÿ" for letter in decoded)


def test_commas_alone_are_no_caption(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.with_suffix(".txt").write_text(" , ,\n")
    assert (captions.read_caption(image), captions.read_text(image)) == ("", "")
    image.with_suffix(".txt").write_text(",\na fox, red\n,,\n")
    assert (captions.read_caption(image), captions.read_captions(image)) == ("a fox, red", ("a fox, red",))


def test_triggers_are_whole_words() -> None:
    captions = {"a cat": "rin, a cat", "Rin in a hat": "Rin in a hat", "string": "rin, string", "": "rin"}
    assert {caption: with_trigger(caption, "rin") for caption in captions} == captions
    assert with_trigger("x", "") == "x"
    assert with_trigger("<rin>, a cat", "<rin>") == "<rin>, a cat"


@pytest.mark.parametrize(
    ("caption", "preserved"),
    [
        ("rin, smiling", "girl, smiling"),
        ("Rin smiling, red hat", "girl smiling, red hat"),
        ("a photo of rin in a park", "a photo of girl in a park"),
        ("rin girl, smiling", "girl, smiling"),
        ("kmx2 and rin", "a\\1 boy and girl"),
        ("leox, running", "running"),
        ("rinse, smiling", "rinse, smiling"),
        ("", ""),
    ],
)
def test_a_class_word_takes_the_place_of_the_trigger(caption: str, preserved: str) -> None:
    assert of_class(caption, {"rin": "girl", "kmx2": "a\\1 boy", "leox": ""}) == preserved
    without = {"rin": "", "kmx2": "", "leox": ""}
    assert of_class(caption, without) == without_trigger(caption, *without)
    assert of_class(caption, {}) == caption
