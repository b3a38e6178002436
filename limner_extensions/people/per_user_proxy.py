"""Per-user proxy of a shared server: passes the requests of each user on to a page server of their own.

Such a server is a process of `ui.launch` with a home folder of its own. Only the proxy can reach it, on a Unix socket
in a private folder. It is started when its user asks for something, and ended when they have been gone for a while;
their runs go on meanwhile. So the page itself need not know about users. Pure ASGI; requests and answers are streamed
both ways for as long as both ends are there.
"""

import asyncio
import html
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from limner_extensions.people import accounts
from trainer import paths
from trainer.i18n import LANGUAGE, _
from ui.server.request_body import Message, Receive
from ui.server.security import COOKIE, HTML, Send, answer

assert sys.platform != "win32"  # it has no Unix sockets; `server.make` refuses accounts there

Fields = list[tuple[bytes, bytes]]
COMMAND = (sys.executable, "-m", "ui.launch")
IDLE = 1800.0  # seconds without a request after which the server of a user ends, to free its memory
GRACE = 10.0  # seconds that a server has to end by itself
BACKLOG = 1024  # connections that may wait for a server that is starting
# Headers that belong to one connection and are not passed on (RFC 9110, section 7.6.1).
HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
CLOSED = _("Your workspace was closed. Reload the page to open it again.")
FAILED = _(
    "Your workspace could not be started. Reload the page to try again, or ask the administrator of this server."
)
STARTING = f"""<!doctype html><html lang="{LANGUAGE}"><meta charset="utf-8"><meta http-equiv="refresh" content="1">
<meta name="viewport" content="width=device-width"><title>Limner</title><style>:root{{color-scheme:light dark}}
body{{font:16px/1.5 system-ui,sans-serif;display:grid;place-items:center;min-height:90vh;margin:0}}</style>
<main role="status"><h1>Limner</h1><p>{html.escape(_("Starting your workspace ..."))}</p></main></html>"""


@dataclass
class Workspace:
    """The page server of one user."""

    process: Process
    transport: httpx.AsyncHTTPTransport
    started: asyncio.Task[bool]  # done once it answers, or with False when it ended before
    active: int = 0  # requests in progress
    last_used: float = field(default_factory=time.monotonic)  # when the last request ended


class PerUserProxy:
    """Passes requests on to the workspace of their user, whose name the security middleware has put into the scope."""

    def __init__(self, command: Sequence[str] = COMMAND, idle: float = IDLE) -> None:
        self._command = list(command)
        self._idle = idle
        self._workspaces: dict[str, Workspace] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # held while one is started or ended
        self._sockets = Path()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer or pass on one connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":  # Gradio uses none
            await answer(scope, send, 404, "")
        else:
            await self._serve(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._sockets = Path(tempfile.mkdtemp(prefix="limner-"))  # readable by this user of the machine only
        cleaning = asyncio.create_task(self._end_idle())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        cleaning.cancel()
        await asyncio.gather(*(self._end(name) for name in self._workspaces))
        shutil.rmtree(self._sockets, ignore_errors=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        workspace = await self._enter(scope["user"])
        if workspace is None:
            await answer(scope, send, 502, FAILED)
            return
        try:
            if _is_page(scope) and not workspace.started.done():
                await answer(scope, send, 200, STARTING, HTML)
            else:
                await pass_on(workspace.transport, scope, receive, send)
        finally:
            workspace.active -= 1
            workspace.last_used = time.monotonic()

    async def _enter(self, name: str) -> Workspace | None:
        """Return the workspace of a user, started if need be, and count a request; None if its last start failed."""
        async with self._locks[name]:
            workspace = self._workspaces.get(name)
            if workspace and workspace.process.returncode is not None:
                del self._workspaces[name]
                if not await workspace.started:
                    return None
                workspace = None
            workspace = workspace or await self._start(name)
            self._workspaces[name] = workspace
            workspace.active += 1
            return workspace

    async def _start(self, name: str) -> Workspace:
        """Start a workspace. Requests that arrive before it is ready wait, as its socket exists already."""
        path = self._sockets / secrets.token_hex(8)
        homes = {"LIMNER_HOME": str(accounts.home(name)), "LIMNER_SHARED": str(paths.home())}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(BACKLOG)
            process = await asyncio.create_subprocess_exec(  # an argument list, no shell
                *self._command,
                "--socket",
                str(listener.fileno()),
                pass_fds=[listener.fileno()],
                stdin=PIPE,
                cwd=paths.CODE,
                env={**os.environ, **homes},
            )
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(uds=str(path), limits=limits)
        return Workspace(process, transport, asyncio.create_task(_wait_until_ready(transport)))

    async def _end_idle(self) -> None:
        """End workspaces that have not been used for a while."""
        while True:
            await asyncio.sleep(min(60.0, self._idle))
            for name, workspace in list(self._workspaces.items()):
                # Not while one is being started: a request may be waiting that is not counted yet.
                is_unused = not workspace.active and not self._locks[name].locked()
                if is_unused and time.monotonic() - workspace.last_used > self._idle:
                    await self._end(name)

    async def _end(self, name: str) -> None:
        async with self._locks[name]:
            process = self._workspaces[name].process
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), GRACE)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _wait_until_ready(transport: httpx.AsyncHTTPTransport) -> bool:
    """Wait for the first answer of a server; False if it ended before."""
    try:
        await (await transport.handle_async_request(httpx.Request("GET", "http://limner/"))).aclose()
    except httpx.TransportError:
        return False
    return True


async def pass_on(transport: httpx.AsyncHTTPTransport, scope: Message, receive: Receive, send: Send) -> None:
    """Pass a request on and stream the answer back; give up when the browser disconnects."""
    sent = asyncio.Event()  # set when the whole request is sent: until then `body` notices a disconnect

    async def body() -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            more = message.get("more_body", False)
            yield message.get("body", b"")
        sent.set()

    async def disconnected() -> None:
        await sent.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    fields = dict(scope["headers"])
    content = None
    if b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0":
        content = body()
    else:
        sent.set()
    target = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    request = httpx.Request(
        scope["method"],
        "http://limner/",
        headers=_request_headers(scope["headers"]),
        content=content,
        extensions={"target": target},
    )
    passing = asyncio.create_task(_forward(transport, request, scope, send))
    watching = asyncio.create_task(disconnected())
    try:
        await asyncio.wait({passing, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        done = passing.done()
        passing.cancel()
        watching.cancel()
        await asyncio.gather(passing, watching, return_exceptions=True)
    if done:
        passing.result()  # raises the exception of the task, if it had one


async def _forward(transport: httpx.AsyncHTTPTransport, request: httpx.Request, scope: Message, send: Send) -> None:
    try:
        response = await transport.handle_async_request(request)  # no time limit: some requests take long
    except (httpx.TransportError, ConnectionError):
        # The server has just ended. The page reloads itself, and that starts another one.
        if _is_page(scope):
            await answer(scope, send, 502, STARTING, HTML)
        else:
            await answer(scope, send, 502, CLOSED)
        return
    try:
        fields = _response_headers(response)
        await send({"type": "http.response.start", "status": response.status_code, "headers": fields})
        with suppress(httpx.TransportError):  # if it ends in the middle, so does the answer to the browser
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
    finally:
        await response.aclose()


def _is_page(scope: Message) -> bool:
    return bool(scope["method"] == "GET" and scope["path"] == "/")


def _request_headers(fields: Fields) -> Fields:
    """Return the headers to pass on: all except those of the connection, the session cookie, and Expect."""
    passed = []
    for key, value in _end_to_end(fields):
        if key == b"cookie":
            value = _without_session(value)
        if value and key != b"expect":  # the proxy reads the body as it comes
            passed.append((key, value))
    return passed


def _without_session(cookies: bytes) -> bytes:
    parts = [part.strip() for part in cookies.split(b";")]
    return b"; ".join(part for part in parts if part.partition(b"=")[0].strip() != COOKIE.encode())


def _response_headers(response: httpx.Response) -> Fields:
    """Return the headers of an answer. What a browser caches of it is for the user of that cookie only."""
    fields = _end_to_end([(key.lower(), value) for key, value in response.headers.raw])
    return [*((key, value) for key, value in fields if key != b"date"), (b"vary", b"cookie")]


def _end_to_end(fields: Fields) -> Fields:
    """Return headers without those about one connection alone."""
    dropped = set(HOP_BY_HOP)
    for key, value in fields:
        if key == b"connection":
            dropped |= {name.strip().lower() for name in value.split(b",")}
    return [(key, value) for key, value in fields if key not in dropped]
