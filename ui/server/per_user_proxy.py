"""The door of a server that several people share: what each of them asks is passed on to a page server of their own.

Such a server is `app.py` again, a process with a home of its own, which only the door can reach: on a Unix socket in a
folder of nobody else's. It is started when its person asks for something, and ended when they have long been gone;
their runs go on meanwhile. So no code of the page has to know that there are several people. Pure ASGI; what is passed
on is streamed, both ways, for as long as both ends are there.
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

from trainer import paths
from trainer.i18n import LANGUAGE, say
from ui.server import accounts
from ui.server.security import COOKIE, HTML, Message, Receive, Send, answer

Fields = list[tuple[bytes, bytes]]
COMMAND = (sys.executable, str(paths.CODE / "app.py"))
IDLE = 1800.0  # seconds without a request after which a person's server gives its memory back
PATIENCE = 10.0  # seconds that one has to end by itself
CALLERS = 1024  # who may wait before a server that is being started
# About one connection, not about what is sent through it (RFC 9110, section 7.6.1).
HOP = {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
       b"trailer", b"transfer-encoding", b"upgrade"}  # fmt: skip
GONE = say("Your workshop has closed. Reload the page to open it again.")
FAILED = say("Your workshop could not be opened. Reload the page to try it again, or ask who runs this server.")
OPENING = f"""<!doctype html><html lang="{LANGUAGE}"><meta charset="utf-8"><meta http-equiv="refresh" content="1">
<meta name="viewport" content="width=device-width"><title>Limner</title><style>:root{{color-scheme:light dark}}
body{{font:16px/1.5 system-ui,sans-serif;display:grid;place-items:center;min-height:90vh;margin:0}}</style>
<main role="status"><h1>Limner</h1><p>{html.escape(say("Your workshop is being opened ..."))}</p></main></html>"""


@dataclass
class Workshop:
    """The page server of one person."""

    process: Process
    line: httpx.AsyncHTTPTransport
    opened: asyncio.Task[bool]  # done once it answers, or with False when it ended before
    busy: int = 0  # requests that are under way
    left: float = field(default_factory=time.monotonic)  # when the last one ended


class Door:
    """Passes requests on to the server of the person who asks; the guard before it says who that is."""

    def __init__(self, command: Sequence[str] = COMMAND, idle: float = IDLE) -> None:
        self._command = list(command)
        self._idle = idle
        self._workshops: dict[str, Workshop] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # held while one is started or ended
        self._sockets = Path()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer or pass on one connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":  # Gradio uses none
            await answer(scope, send, 404, "")
        else:
            await self._serve(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._sockets = Path(tempfile.mkdtemp(prefix="limner-"))  # for nobody else to look into
        tidying = asyncio.create_task(self._tidy())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        tidying.cancel()
        await asyncio.gather(*(self._end(name) for name in self._workshops))
        shutil.rmtree(self._sockets, ignore_errors=True)
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        workshop = await self._enter(scope["person"])
        if workshop is None:
            await answer(scope, send, 502, FAILED)
            return
        try:
            if _is_page(scope) and not workshop.opened.done():
                await answer(scope, send, 200, OPENING, HTML)
            else:
                await pass_on(workshop.line, scope, receive, send)
        finally:
            workshop.busy -= 1
            workshop.left = time.monotonic()

    async def _enter(self, name: str) -> Workshop | None:
        """The server of a person, with one request more; None if it could not be started, until it is tried again."""
        async with self._turns[name]:
            workshop = self._workshops.get(name)
            if workshop and workshop.process.returncode is not None:
                del self._workshops[name]
                if not await workshop.opened:
                    return None
                workshop = None
            workshop = workshop or await self._start(name)
            self._workshops[name] = workshop
            workshop.busy += 1
            return workshop

    async def _start(self, name: str) -> Workshop:
        """Start the server of a person. Who calls it before it is ready waits, as the socket is there already."""
        path = self._sockets / secrets.token_hex(8)
        places = {"LIMNER_HOME": str(accounts.home(name)), "LIMNER_SHARED": str(paths.home())}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(CALLERS)
            process = await asyncio.create_subprocess_exec(  # an argument list, no shell
                *self._command, "--socket", str(listener.fileno()), pass_fds=[listener.fileno()],
                stdin=PIPE, cwd=paths.CODE, env={**os.environ, **places},
            )  # fmt: skip
        line = httpx.AsyncHTTPTransport(
            uds=str(path), limits=httpx.Limits(max_connections=None, max_keepalive_connections=0)
        )
        return Workshop(process, line, asyncio.create_task(_knock(line)))

    async def _tidy(self) -> None:
        """End servers whose person has long been gone."""
        while True:
            await asyncio.sleep(min(60.0, self._idle))
            for name, workshop in list(self._workshops.items()):
                # Not while one is being started: a request would be waiting that is not counted yet.
                idle = not workshop.busy and not self._turns[name].locked()
                if idle and time.monotonic() - workshop.left > self._idle:
                    await self._end(name)

    async def _end(self, name: str) -> None:
        async with self._turns[name]:
            process = self._workshops[name].process
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), PATIENCE)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _knock(line: httpx.AsyncHTTPTransport) -> bool:
    """Wait for the first answer of a server; whether there was one."""
    try:
        await (await line.handle_async_request(httpx.Request("GET", "http://limner/"))).aclose()
    except httpx.TransportError:
        return False
    return True


async def pass_on(line: httpx.AsyncHTTPTransport, scope: Message, receive: Receive, send: Send) -> None:
    """Pass a request on and hand back what is answered, piece by piece; let go of it when the browser goes away."""
    sent = asyncio.Event()  # the whole request: until then `body` hears when the browser goes away

    async def body() -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            more = message.get("more_body", False)
            yield message.get("body", b"")
        sent.set()

    async def gone() -> None:
        await sent.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    fields = dict(scope["headers"])
    has_body = b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"
    if not has_body:
        sent.set()
    query = scope["query_string"]
    request = httpx.Request(
        scope["method"], "http://limner/", headers=_asked(scope["headers"]), content=body() if has_body else None,
        extensions={"target": scope["raw_path"] + (b"?" + query if query else b"")},
    )  # fmt: skip
    passing, watching = asyncio.create_task(_forward(line, request, scope, send)), asyncio.create_task(gone())
    try:
        await asyncio.wait({passing, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        done = passing.done()
        passing.cancel()
        watching.cancel()
        await asyncio.gather(passing, watching, return_exceptions=True)
    if done:
        passing.result()  # raises what it did


async def _forward(line: httpx.AsyncHTTPTransport, request: httpx.Request, scope: Message, send: Send) -> None:
    try:
        response = await line.handle_async_request(request)  # without a time limit: nothing says how long work takes
    except (httpx.TransportError, ConnectionError):
        # It died just now. The page loads itself anew, and finds that another one is being started.
        text, kind = (OPENING, HTML) if _is_page(scope) else (GONE, None)
        await answer(scope, send, 502, text, kind)
        return
    try:
        await send({"type": "http.response.start", "status": response.status_code, "headers": _answered(response)})
        with suppress(httpx.TransportError):  # it ended in the middle, and so does what the browser gets
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
    finally:
        await response.aclose()


def _is_page(scope: Message) -> bool:
    return bool(scope["method"] == "GET" and scope["path"] == "/")


def _asked(fields: Fields) -> Fields:
    """The header of a request as it is passed on: all of it, without what opened the door."""
    found = []
    for key, value in _lasting(fields):
        if key == b"cookie":
            others = [one.strip() for one in value.split(b";") if one.partition(b"=")[0].strip() != COOKIE.encode()]
            value = b"; ".join(others)
        if value and key != b"expect":  # the door asks for the body as it comes
            found.append((key, value))
    return found


def _answered(response: httpx.Response) -> Fields:
    """The header of an answer as it is handed back. What a browser keeps of it is for the person of that cookie."""
    fields = _lasting([(key.lower(), value) for key, value in response.headers.raw])
    return [*((key, value) for key, value in fields if key != b"date"), (b"vary", b"cookie")]


def _lasting(fields: Fields) -> Fields:
    """A header without what is said about one connection alone."""
    named = {one.strip().lower() for key, value in fields if key == b"connection" for one in value.split(b",")}
    return [(key, value) for key, value in fields if key not in HOP | named]
