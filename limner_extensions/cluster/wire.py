"""Messages between a relay and a node at the two ends of a byte stream: JSON, and bytes beside it as they are."""

import json
from collections.abc import Callable
from typing import Any, BinaryIO

from trainer import foreign_text

HEADER = 4  # bytes that hold the size of the JSON
CHUNK = 2**16  # bytes that are read or written at once
MAX_JSON = 2**23  # bytes: the names of tens of thousands of files
MAX_BYTES = 2**26  # bytes beside it, in one message
BYTES = "bytes"  # the key of an object that stands for bytes: their number


class Wire:
    """One end of a connection. `moved` is called whenever some bytes have passed, so that a standstill is noticed."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO, moved: Callable[[], None] = lambda: None) -> None:
        self._incoming, self._outgoing, self._moved = incoming, outgoing, moved

    def send(self, message: object) -> None:
        """Send a message of JSON's kinds and bytes.

        Raises:
            OSError: the other end is gone.
        """
        blobs: list[bytes] = []

        def stand_for(value: object) -> dict[str, int]:
            if not isinstance(value, bytes):
                raise TypeError(f"a {type(value).__name__} cannot be sent")
            blobs.append(value)
            return {BYTES: len(value)}

        header = json.dumps(message, default=stand_for).encode()
        for part in (len(header).to_bytes(HEADER, "big"), header, *blobs):
            for start in range(0, len(part), CHUNK):
                self._outgoing.write(part[start : start + CHUNK])
                self._moved()
        self._outgoing.flush()

    def receive(self) -> Any:  # noqa: ANN401 - of JSON
        """Return the next message.

        Raises:
            EOFError: the other end is gone.
            ValueError: something else was sent than a message.
        """
        size = int.from_bytes(self._read(HEADER), "big")
        if size > MAX_JSON:
            raise ValueError(f"a message of {size} bytes")
        room = MAX_BYTES

        def fill(value: dict[str, Any]) -> object:
            nonlocal room
            if value.keys() != {BYTES} or not isinstance(value[BYTES], int):
                return value
            room -= value[BYTES]
            if room < 0:
                raise ValueError("a message with too many bytes")
            return self._read(value[BYTES])

        # Objects are filled in the order in which they were written, which is that of the bytes after them.
        return foreign_text.parse_json(self._read(size), most=MAX_JSON, object_hook=fill)

    def _read(self, size: int) -> bytes:
        if size < 0:
            raise ValueError("a negative number of bytes")
        parts = []
        while size:
            part = self._incoming.read(min(size, CHUNK))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
            self._moved()
        return b"".join(parts)
