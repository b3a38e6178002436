"""JSON, TOML and YAML of other people: whatever is wrong with a text, one exception is raised, at once."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from trainer import foreign_text
from trainer.foreign_text import MAX_DEPTH, ForeignTextError

pytestmark = pytest.mark.timeout(120)
Parse = Callable[[bytes], Any]
HOSTILE: dict[Parse, dict[str, bytes]] = {
    foreign_text.parse_json: {
        "nested lists": b"[" * 1_000_000,
        "nested lists that end": b"[" * 900 + b"]" * 900,
        "nested objects": b'{"a":' * 1_000_000,
        "an integer of very many digits": b"1" * 100_000,
        "half of a pair, in bytes that are not text": b'"\xed\xa0\x80"',
        "cut off": b'{"a": [1, 2',
        "too many bytes": b'"' + b"x" * foreign_text.MAX_BYTES + b'"',
    },
    foreign_text.parse_toml: {
        "nested lists": b"a = " + b"[" * 100_000,
        "a key of very many dots": b".".join([b"a"] * 50_000) + b" = 1",
        "nested lists that end": b"a = " + b"[" * 100 + b"]" * 100,
        "an integer of very many digits": b"a = " + b"1" * 100_000,
        "bytes that are not text": b"a = '\xff'",
        "too many bytes": b"a = '" + b"x" * foreign_text.MAX_SETTINGS + b"'",
    },
    foreign_text.parse_yaml: {
        "nested lists": b"[" * 100_000,
        "references that multiply": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "an object of Python": b"!!python/object/apply:os.system ['true']",
        "very many values": b"- 1\n" * 30_000,
        "bytes that are not text": b"a: '\xff'",
    },
}


@pytest.mark.parametrize(("parse", "name"), [(parse, name) for parse, cases in HOSTILE.items() for name in cases])
def test_hostile_text_is_refused(parse: Parse, name: str) -> None:
    """As bytes, and as text where they are text: the one exception is raised, and soon."""
    data = HOSTILE[parse][name]
    with pytest.raises(ForeignTextError):
        parse(data)
    with suppress(UnicodeDecodeError), pytest.raises(ForeignTextError):
        parse(data.decode())


def test_what_is_sound_is_read(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "ü"], "b": {"c": "[[[["}}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert foreign_text.parse_json(json.dumps(value)) == foreign_text.read_json(tmp_path / "x.json") == value
    assert foreign_text.parse_json(b"\xef\xbb\xbf[1]") == [1]
    assert foreign_text.parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert foreign_text.parse_toml("[a.b]\nc = [1, 2]\n'x.y' = 3") == {"a": {"b": {"c": [1, 2], "x.y": 3}}}
    assert foreign_text.parse_yaml("a: [1, 2]\nb:\n  c: true\n") == {"a": [1, 2], "b": {"c": True}}


def test_a_strict_reader_takes_no_key_twice_and_no_nan() -> None:
    assert foreign_text.parse_json('{"a": 1, "a": 2}') == {"a": 2}
    for text in ('{"a": 1, "a": 2}', '{"a": NaN}', "[-Infinity]"):
        with pytest.raises(ForeignTextError):
            foreign_text.parse_json(text, strict=True)


def test_of_a_large_file_no_more_is_read_than_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as large:
        large.truncate(50 * 2**30)
    for file, error in (("x.json", ForeignTextError), ("none.json", FileNotFoundError)):
        with pytest.raises(error):
            foreign_text.read_json(tmp_path / file)


@pytest.mark.parametrize("text", ['{"a": 1}', '{\n "a": 1\n}', "0f" * 32 + '\n{"a": 1}'])
def test_own_files_have_any_layout_and_earlier_ones_a_checksum(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.json").write_text(text, encoding="utf-8")
    assert foreign_text.read_own_table(tmp_path / "own.json") == {"a": 1}
    (tmp_path / "own.json").write_text("[1]", encoding="utf-8")
    assert foreign_text.read_own_table(tmp_path / "own.json") == {}, "not a table"
