"""Messages between a relay and a node."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner_extensions.cluster import wire
from limner_extensions.cluster.wire import Wire

plain = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def sent(*messages: object) -> bytes:
    stream = io.BytesIO()
    for message in messages:
        Wire(io.BytesIO(), stream).send(message)
    return stream.getvalue()


@given(st.lists(values, max_size=3))
def test_messages_arrive_as_they_were_sent(messages: list[Any]) -> None:
    end = Wire(io.BytesIO(sent(*messages)), io.BytesIO())
    assert [end.receive() for _ in messages] == messages
    with pytest.raises(EOFError):
        end.receive()


@given(values, st.data())
def test_a_message_that_is_cut_off_is_none(message: object, data: st.DataObject) -> None:
    stream = sent(message)
    length = data.draw(st.integers(0, len(stream) - 1))
    with pytest.raises(EOFError):
        Wire(io.BytesIO(stream[:length]), io.BytesIO()).receive()


@pytest.mark.parametrize(
    "stream", [b"\xff\xff\xff\xff", b"\0\0\0\x0d" + b'{"bytes": -1}', b"\0\0\0\x02{}"[:5] + b"\xff"]
)
def test_what_is_too_large_or_broken_is_refused_at_once(stream: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of json, too
        Wire(io.BytesIO(stream), io.BytesIO()).receive()


def test_a_megabyte_tells_that_it_moves() -> None:
    moves: list[None] = []
    stream = sent(b"x" * 2**20)
    assert Wire(io.BytesIO(stream), io.BytesIO(), lambda: moves.append(None)).receive() == b"x" * 2**20
    assert len(moves) == 2 + 2**20 // wire.CHUNK
