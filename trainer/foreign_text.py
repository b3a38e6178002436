"""Parse JSON, TOML and YAML that another person, program or machine may have written.

Whatever is wrong with a text, `ForeignTextError` is raised, and soon: it is too long, nested too deeply, not UTF-8, not
of its language, or has numbers or letters that cannot exist. A lint rule forbids the libraries' own parsers elsewhere.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Json: TypeAlias = Any  # what a text of JSON or YAML can hold
MAX_BYTES = 8 * 2**20  # of a JSON, unless the caller names a limit; as Python objects it may take thirty times that
MAX_SETTINGS = 512 * 1024  # bytes of a TOML or YAML
MAX_OWN = 2**28  # bytes of a JSON that Limner wrote itself about thousands of images
MAX_HEADER = 8 * 2**20  # bytes of the header of a safetensors file
MAX_TENSORS = 20_000  # in such a file; adapters of all kinds, for all layers of XL, have half as many
MAX_DEPTH = 64  # levels of lists and objects
MAX_EVENTS = 20_000  # of a YAML, which PyYAML reads at some 50,000 a second
_CHECKSUM = re.compile(r"\A[0-9a-f]{64}\n")  # that earlier versions put into a first line
# A key of more dots than any settings have, which tomllib reads in quadratic time.
_DEEP_KEY = re.compile(
    r"(?<![\w\"'-])(?:[\w-]{1,80}[ \t]*\.[ \t]*|\"[^\"\n]{0,80}\"[ \t]*\.[ \t]*|'[^'\n]{0,80}'[ \t]*\.[ \t]*){16}"
)


class ForeignTextError(ValueError):
    """A text that cannot be used; the message says why, in English, without the text."""


class RepeatedKeyError(ForeignTextError):
    """A JSON object has a key twice."""


class TooManyTensorsError(ForeignTextError):
    """A safetensors file has more tensors than any model."""


def parse_json(
    data: bytes | str,
    *,
    most: int = MAX_BYTES,
    strict: bool = False,
    object_hook: Callable[[dict[str, Any]], object] | None = None,
) -> Json:
    """Return the value of a JSON text.

    Args:
        data: the text, or its bytes in UTF-8.
        most: bytes that it may have.
        strict: refuse objects with a key twice, and NaN and infinities, which Python writes but JSON does not have.
        object_hook: what stands for an object, as for `json.loads`.

    Raises:
        RepeatedKeyError: strictly read, an object has a key twice.
        ForeignTextError: it is not JSON, or beyond a limit.
    """
    pairs_hook = _unique if strict else None
    constant = _refuse if strict else float
    text = _decode(data, most)
    return _loaded(
        lambda: json.loads(text, object_hook=object_hook, object_pairs_hook=pairs_hook, parse_constant=constant)
    )


def read_own_json(path: Path) -> Json:
    """Return the value of a JSON file that Limner wrote itself; None if there is none, or it cannot be read."""
    try:
        text = _CHECKSUM.sub("", path.read_text(encoding="utf-8"))
        return parse_json(text, most=MAX_OWN)
    except (OSError, ValueError):
        return None


def read_own_table(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file that Limner wrote itself; {} if there is none, or it cannot be read."""
    table = read_own_json(path)
    return table if isinstance(table, dict) else {}


def read_json(path: Path, *, most: int = MAX_BYTES) -> Json:
    """Return the value of a JSON file, as `parse_json`; no more of it is read than it may have.

    Raises:
        ForeignTextError: as `parse_json`.
        OSError: it cannot be read.
    """
    return parse_json(_read(path, most), most=most)


def parse_header(header: bytes) -> dict[str, Any]:
    """Return the table in the header of a safetensors file: its metadata, and the type, shape and place of each tensor.

    Raises:
        TooManyTensorsError: it has more than `MAX_TENSORS`.
        RepeatedKeyError: it names a tensor twice.
        ForeignTextError: as `parse_json`.
    """
    if header.count(b"data_offsets") > MAX_TENSORS:  # which takes no time; what it misses is counted below
        raise TooManyTensorsError("it has too many tensors")
    table = parse_json(header, most=MAX_HEADER, strict=True)
    if not isinstance(table, dict):
        raise ForeignTextError("its header is not an object")
    if len(table.keys() - {"__metadata__"}) > MAX_TENSORS:
        raise TooManyTensorsError("it has too many tensors")
    return table


def parse_toml(data: bytes | str) -> dict[str, Any]:
    """Return the table of a TOML text.

    Raises:
        ForeignTextError: it is not TOML, or beyond a limit.
    """
    text = _decode(data, MAX_SETTINGS)
    if _DEEP_KEY.search(text):
        raise _too_deep()
    return dict(_loaded(lambda: tomllib.loads(text)))


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table of a TOML file, as `parse_toml`; no more of it is read than it may have.

    Raises:
        ForeignTextError: as `parse_toml`.
        OSError: it cannot be read.
    """
    return parse_toml(_read(path, MAX_SETTINGS))


def parse_yaml(data: bytes | str) -> Json:
    """Return the value of a YAML text of plain data, without references, which could multiply a small text.

    Raises:
        ForeignTextError: it is not such a YAML, or beyond a limit.
    """
    text = _decode(data, MAX_SETTINGS)

    def load() -> Json:
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH:
                raise _too_deep()
            if number > MAX_EVENTS or isinstance(event, yaml.AliasEvent):
                raise ForeignTextError("it has too many values, or references")
        return yaml.safe_load(text)

    return _loaded(load)


def read_text(path: Path) -> str:
    """Return the text of a small file.

    Raises:
        ForeignTextError: it is longer than `MAX_SETTINGS`, or not UTF-8.
        OSError: it cannot be read.
    """
    return _decode(_read(path, MAX_SETTINGS), MAX_SETTINGS)


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most + 1)


def _decode(data: bytes | str, most: int) -> str:
    if len(data) > most:
        raise ForeignTextError(f"it has more than {most} bytes")
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ForeignTextError(str(error)) from None


def _loaded(load: Callable[[], Json]) -> Json:
    """Return what a parser loads, which it may not refuse in a way of its own.

    Raises:
        ForeignTextError: it refuses the text, or the value is beyond a limit.
    """
    try:
        value = load()
    except ForeignTextError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ForeignTextError(str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    _check(value)
    return value


def _check(value: object) -> None:
    """Check the levels of a value, and that its texts can be encoded again: JSON can name half of a pair of letters.

    Raises:
        ForeignTextError: there are more than `MAX_DEPTH` levels, or a text that is none.
    """
    level, depth = [value], 0
    while level:
        below: list[object] = []
        for item in level:
            children: Iterable[object] = ()
            if isinstance(item, dict):
                below.extend(item)
                children = item.values()
            elif isinstance(item, list):
                children = item
            elif isinstance(item, str) and not item.isascii():
                _check_letters(item)
            below.extend(children)
        level, depth = below, depth + 1
        if depth > MAX_DEPTH + 1:  # the lowest level is that of plain values
            raise _too_deep()


def _check_letters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ForeignTextError(str(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise RepeatedKeyError("an object has a key twice")
    return table


def _refuse(constant: str) -> None:
    raise ForeignTextError(f"{constant} is not JSON")


def _too_deep() -> ForeignTextError:
    return ForeignTextError("it is nested too deeply")
