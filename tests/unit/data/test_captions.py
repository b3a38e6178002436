"""Captions in the encodings that people's files have, and with class words for triggers."""

import pytest

from trainer.data.captions import REPLACEMENT, decode_text, of_class, without_trigger


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("1girl, 红色头发的女孩", "gbk"), ("あかい かみの おんなのこ", "shift-jis"), ("рыжая девушка", "cp1251")],
)
def test_a_text_in_another_encoding_is_no_row_of_odd_letters(text: str, encoding: str) -> None:
    decoded = decode_text(text.encode(encoding))
    assert REPLACEMENT in decoded
    assert not any("À" <= letter <= "ÿ" for letter in decoded)


@pytest.mark.parametrize(
    "text", ["Blumenmädchen, „fröhlich“ …", "un garçon naïf à l\u2019œil bleu", "ÄÖÜ, Ære", "¿qué? ¡sí!"]
)
def test_western_languages_are_read_as_old_editors_write_them(text: str) -> None:
    assert decode_text(text.encode("cp1252")) == text


@pytest.mark.parametrize(
    ("caption", "preserved"),
    [
        ("rin, smiling", "girl, smiling"),
        ("rin", "girl"),
        ("Rin smiling, red hat", "girl smiling, red hat"),
        ("a photo of rin in a park", "a photo of girl in a park"),
        ("rin girl, smiling", "girl, smiling"),
        ("rin, a girl in a park", "a girl in a park"),
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
