"""Bodies of requests: counted while they arrive, as a chunked one does not tell its length, and cut off if too slow."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from trainer.i18n import _

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

WITHIN = 60.0  # seconds for a body of any size, and for each part of it the time that SLOWEST takes
SLOWEST = 8 * 2**10  # bytes per second
CHECKED_EVERY = 16 * 2**20  # bytes after which an upload looks at the disk again, or reserves more if it told no length
UPLOAD, IMAGES = "/gradio_api/upload", "/images"  # addresses that files are sent to; a body for any other is small
MAX_BODY = 8 * 2**20
MAX_UPLOAD = 2 * 2**30
TOO_LARGE = _("This request is too large.")
UPLOAD_TOO_LARGE = _(
    "An upload may have at most {size} GB. Upload fewer or smaller files at a time.", size=MAX_UPLOAD // 2**30
)
NO_ROOM = _(
    "There is no room for this upload: others are in progress or wait to be imported, or the disk is almost full. Try "
    "again in a while, upload fewer files at a time, or free some disk space."
)
TOO_SLOW = _("The upload arrives too slowly. Try again on a faster connection.")


class RefusedError(Exception):
    """A body that is not taken in to its end."""


class Budget:
    """Bytes that are still to arrive of all uploads in progress, which together never exceed the room on the disk."""

    def __init__(self, room: Callable[[], int]) -> None:
        """Begin with none; `room` returns the bytes that may be written now, less those that were."""
        self._room, self._reserved = room, 0

    def reserve(self, count: int) -> bool:
        """Reserve bytes beside those of the other requests; False if there is no room for all of them."""
        if self._reserved + count > self._room():
            return False
        self._reserved += count
        return True

    def release(self, count: int) -> None:
        """Give back bytes that were reserved and have been written, or will not come."""
        self._reserved -= count


class RequestBody:
    """The body of one request; `refusal` is the status and the sentence of one that is not taken in to its end."""

    def __init__(self, scope: Message, receive: Receive, limit: int, budget: Budget | None = None) -> None:
        """Wrap `receive`. A body with a budget is an upload: what arrives is written to the disk."""
        self._receive, self._limit, self._budget = receive, limit, budget
        self._begun, self._received = time.monotonic(), 0
        self._reserved = self._unwritten = 0  # of the budget; what the app was given last
        self._checked = 0  # bytes that had arrived when the disk was looked at
        self._is_complete = scope["type"] != "http"
        self.refusal: tuple[int, str] | None = None

    def expect(self, length: int) -> bool:
        """Reserve room for a body of this length, or for the beginning of one that tells none (0)."""
        if length > self._limit:
            self.refusal = 413, UPLOAD_TOO_LARGE if self._budget else TOO_LARGE
        elif self._budget:
            self._reserve(length or min(self._limit, CHECKED_EVERY))
        return self.refusal is None

    async def receive(self) -> Message:
        """Receive the next part, or what comes after the body.

        Raises:
            RefusedError: the body is too large, too slow, or there is no room left for it.
        """
        if self._is_complete:
            return await self._receive()
        self._release(self._unwritten)
        left = self._begun + WITHIN + self._received / SLOWEST - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.0))
        except TimeoutError:
            self.refusal = 408, TOO_SLOW
            raise RefusedError from None
        self._unwritten = len(message.get("body") or b"")
        self._received += self._unwritten
        self._is_complete = not message.get("more_body", False)
        if self._received > self._limit:
            self.refusal = 413, UPLOAD_TOO_LARGE if self._budget else TOO_LARGE
        elif self._budget:
            self._check_room()
        if self.refusal:
            raise RefusedError
        return message

    def close(self) -> None:
        """Give back what was reserved; what was written of an upload is in its place, or deleted, by now."""
        self._release(self._reserved)

    def _check_room(self) -> None:
        """Look now and then whether there still is room for all that is to come: others write to the disk as well."""
        missing = self._unwritten - self._reserved
        if missing > 0:
            self._reserve(max(missing, CHECKED_EVERY))
        elif self._received - self._checked > CHECKED_EVERY:
            self._reserve(0)

    def _reserve(self, count: int) -> None:
        assert self._budget
        self._checked = self._received
        if self._budget.reserve(count):
            self._reserved += count
        else:
            self.refusal = 413, NO_ROOM

    def _release(self, count: int) -> None:
        if self._budget:
            self._budget.release(count)
            self._reserved -= count
            self._unwritten = 0
