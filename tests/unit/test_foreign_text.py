"""JSON, TOML and YAML of other people: whatever is wrong with a text, one exception is raised, at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import foreign_text
from trainer.foreign_text import MAX_DEPTH, ForeignTextError

pytestmark = pytest.mark.timeout(120)
Parse = Callable[[bytes], Any]
HOSTILE_JSON = {
    "nested lists": b"[" * 1_000_000,
    "nested lists that end": b"[" * 900 + b"]" * 900,
    "nested objects": b'{"a":' * 1_000_000,
    "an integer of very many digits": b"1" * 100_000,
    "bytes that are not text": b'{"a": "\xff"}',
    "half of a pair": b'"\xed\xa0\x80"',
    "cut off": b'{"a": [1, 2',
    "too many bytes": b'"' + b"x" * foreign_text.MAX_BYTES + b'"',
}
HOSTILE_TOML = {
    "nested lists": b"a = " + b"[" * 100_000,
    "a key of very many dots": b".".join([b"a"] * 50_000) + b" = 1",
    "nested lists that end": b"a = " + b"[" * 100 + b"]" * 100,
    "an integer of very many digits": b"a = " + b"1" * 100_000,
    "bytes that are not text": b"a = '\xff'",
    "too many bytes": b"a = '" + b"x" * foreign_text.MAX_SETTINGS + b"'",
}
HOSTILE_YAML = {
    "nested lists": b"[" * 100_000,
    "references that multiply": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "an object of Python": b"!!python/object/apply:os.system ['true']",
    "very many values": b"- 1\n" * 30_000,
    "bytes that are not text": b"a: '\xff'",
}


HOSTILE = [
    pytest.param(parse, data, id=f"{form}, {name}")
    for form, parse, cases in (
        ("JSON", foreign_text.parse_json, HOSTILE_JSON),
        ("TOML", foreign_text.parse_toml, HOSTILE_TOML),
        ("YAML", foreign_text.parse_yaml, HOSTILE_YAML),
    )
    for name, data in cases.items()
]


@pytest.mark.parametrize(("parse", "data"), HOSTILE)
def test_hostile_text_is_refused(parse: Parse, data: bytes) -> None:
    """As bytes, and as text where they are text: the one exception is raised, and soon."""
    with pytest.raises(ForeignTextError):
        parse(data)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(ForeignTextError):
        parse(text)  # type: ignore[arg-type]


def test_what_is_sound_is_read(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "ü"], "b": {"c": "[[[["}}
    assert foreign_text.parse_json(json.dumps(value)) == value
    assert foreign_text.parse_json(b"\xef\xbb\xbf[1]") == [1]
    assert foreign_text.parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert foreign_text.parse_toml("[a.b]\nc = [1, 2]\n'x.y' = 3") == {"a": {"b": {"c": [1, 2], "x.y": 3}}}
    assert foreign_text.parse_yaml("a: [1, 2]\nb:\n  c: true\n") == {"a": [1, 2], "b": {"c": True}}
    file = tmp_path / "x.json"
    file.write_text(json.dumps(value))
    assert foreign_text.read_json(file) == value


def test_a_strict_reader_takes_no_key_twice_and_no_nan() -> None:
    assert foreign_text.parse_json('{"a": 1, "a": 2}') == {"a": 2}
    for text in ('{"a": 1, "a": 2}', '{"a": NaN}', "[-Infinity]"):
        with pytest.raises(ForeignTextError):
            foreign_text.parse_json(text, strict=True)


def test_of_a_large_file_no_more_is_read_than_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with file.open("wb") as large:
        large.truncate(50 * 2**30)
    with pytest.raises(ForeignTextError):
        foreign_text.read_json(file)
    with pytest.raises(FileNotFoundError):
        foreign_text.read_json(tmp_path / "none.json")


@pytest.mark.parametrize("text", ['{"a": 1}', '{\n "a": 1\n}', "0f" * 32 + '\n{"a": 1}'])
def test_own_files_have_any_layout_and_earlier_ones_a_checksum(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.json").write_text(text, encoding="utf-8")
    assert foreign_text.read_own_table(tmp_path / "own.json") == {"a": 1}
    (tmp_path / "own.json").write_text("[1]", encoding="utf-8")
    assert foreign_text.read_own_table(tmp_path / "own.json") == {}, "not a table"
