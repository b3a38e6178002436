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
TOO_LARGE = _(
    "This upload is too large, or the disk is almost full. Upload fewer or smaller files at a time, or free some disk "
    "space."
)
TOO_SLOW = _("The upload arrives too slowly. Try again on a faster connection.")


class RefusedError(Exception):
    """A body that is not taken in to its end."""


class RequestBody:
    """The body of one request; `refusal` is the status and the sentence of one that is not taken in to its end."""

    def __init__(self, scope: Message, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._begun, self._received = time.monotonic(), 0
        self._is_complete = scope["type"] != "http"
        self.refusal: tuple[int, str] | None = None

    async def receive(self) -> Message:
        """Receive the next part, or what comes after the body.

        Raises:
            RefusedError: the body is too large, or too slow.
        """
        if self._is_complete:
            return await self._receive()
        left = self._begun + WITHIN + self._received / SLOWEST - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.0))
        except TimeoutError:
            self.refusal = 408, TOO_SLOW
            raise RefusedError from None
        self._received += len(message.get("body") or b"")
        self._is_complete = not message.get("more_body", False)
        if self._received > self._limit:
            self.refusal = 413, TOO_LARGE
            raise RefusedError
        return message
