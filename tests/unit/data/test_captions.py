"""Captions in the encodings that people's files have."""

import pytest

from trainer.data.captions import REPLACEMENT, decode_text


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
