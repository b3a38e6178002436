"""Limits on connections: how many there may be, and how long a request may take to arrive.

uvicorn accepts any number and waits for ever for a request that never comes, until the process has no file left to
open; from then on it answers nobody, and logs a traceback at each attempt.
"""

import asyncio
import logging
import sys
import time
from typing import Any

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from ui.server.logins import network

if sys.platform != "win32":
    import resource

MOST = 500  # connections in all
EACH = 300  # of one network; a browser takes six, but several people may share an address
REQUEST_WITHIN = 10.0  # seconds from the first byte of a request, or from the start of a connection, to its last header
LOGGED_EVERY = 1.0  # seconds


class LimitedProtocol(H11Protocol):
    """HTTP connection that is closed if there are too many, or if its request does not arrive in time."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - of asyncio, which names none that fits
        """Accept a connection, or close it at once."""
        super().connection_made(transport)
        address = self.client[0] if self.client else None  # None if it is closed already
        clients = [getattr(other, "client", None) for other in self.connections]
        same = sum(network(client[0]) == network(address) for client in clients if client) if address else 0
        if address and (len(self.connections) > most() or same > EACH):
            transport.abort()
            return
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        """Take in a part of a request."""
        before = self.cycle
        if before is None or before.response_complete:
            self._expect_request()
        super().data_received(data)
        if self.cycle is not before:
            self._forget_deadline()

    def handle_websocket_upgrade(self, event: Any) -> None:  # noqa: ANN401 - of h11
        """Hand the connection over to a WebSocket."""
        self._forget_deadline()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget_deadline()
        super().connection_lost(exc)

    def _expect_request(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_WITHIN, self.transport.abort)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def most() -> int:
    """Return how many connections there may be: never more than half of the files that this process may open."""
    if sys.platform == "win32":
        return MOST
    else:
        return min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class OncePerSecond(logging.Filter):
    """Lets one record per second pass, so that nobody can fill the disk with a server's log."""

    _latest = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True for a record to log."""
        now = time.monotonic()
        if now - self._latest < LOGGED_EVERY:
            return False
        self._latest = now
        return True


class RefusalInOneLine(logging.Filter):
    """Shortens what is logged of a request that Gradio refuses after its answer has begun: for an unknown session."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the traceback of such a refusal by the status."""
        error = record.exc_info[1] if record.exc_info else None
        if error and isinstance(error.__cause__, HTTPException):
            record.msg, record.args = "A request was refused with %s.", (error.__cause__.status_code,)
            record.exc_info = record.exc_text = None
        return True


def limit_logs() -> None:
    """Limit what asyncio and uvicorn log of failed connections and requests."""
    for name in ("asyncio", "uvicorn.error"):
        logger = logging.getLogger(name)
        for limit in (OncePerSecond, RefusalInOneLine):
            if not any(isinstance(present, limit) for present in logger.filters):
                logger.addFilter(limit())
