"""What stands between the network and the page: hosts, origins, sizes, the password, and headers. Pure ASGI.

Gradio by itself takes any Host, executes posts that another web site sends, and has no limit on guessing a password.
"""

import html
import ipaddress
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

from trainer.words import LANGUAGE, say

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY = 8 * 2**20
MAX_UPLOAD = 2 * 2**30
TRIES_PER_MINUTE = 10
ADDRESSES = 1000  # whose tries are remembered
TOO_LARGE = say(
    "This upload is too large, or the disk is nearly full. Add fewer or smaller files at a time, or make room."
)
FOREIGN = say("Requests from other web sites are refused.")
COOKIE = "limner-session"
LOGIN = "/login"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CSP = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "connect-src 'self' blob: data:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'; object-src 'none'"
)
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"SAMEORIGIN",
    b"referrer-policy": b"same-origin",
    b"content-security-policy": CSP.encode(),
}
DROPPED = (b"access-control-allow-origin", b"access-control-allow-credentials", b"server")
FORM = """<!doctype html><html lang="{language}"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Limner</title><style>:root{{color-scheme:light dark}}
body{{font:16px/1.5 system-ui,sans-serif;display:grid;place-items:center;min-height:90vh;margin:0}}
form{{display:grid;gap:.8em;width:min(20em,90vw)}}input,button{{font:inherit;padding:.6em}}</style>
<form method="post"><h1>Limner</h1><label for="password">{password}</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus required>
<button>{enter}</button><p role="alert">{note}</p></form></html>"""


def _form(note: str = "") -> str:
    """The page that asks for the password."""
    said = {"password": say("Password"), "enter": say("Enter"), "note": note}
    return FORM.format(language=LANGUAGE, **{key: html.escape(text) for key, text in said.items()})


class TooLargeError(Exception):
    """A body that grew beyond its limit while it came in."""


class Guard:
    """Lets through what comes from our own page, answers the rest in one sentence."""

    def __init__(
        self,
        app: App,
        *,
        hosts: frozenset[str] = LOOPBACK,
        any_address: bool = False,
        password: str = "",
        room: Callable[[], int] = lambda: MAX_UPLOAD,
    ) -> None:
        """Guard an app.

        Args:
            app: what is behind the guard.
            hosts: names by which the server may be called.
            any_address: also take any IP address as Host; another site's name that points here is still refused.
            password: "" = none needed.
            room: bytes that uploads may take at present.
        """
        self._app = app
        self._hosts = hosts
        self._any_address = any_address
        self._password = password
        self._room = room
        self._session = secrets.token_urlsafe(32)
        self._tries: defaultdict[str, deque[float]] = defaultdict(deque)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer or pass on one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        send = _with_headers(send)
        refusal = self._refusal(scope, headers)
        if refusal:
            await _answer(scope, send, *refusal)
        elif self._password and not self._is_known(headers):
            await self._login(scope, receive, send)
        else:
            await self._pass_on(scope, receive, send, limit=self._limit(scope))

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        """Why a request is refused whoever sends it: (status, sentence)."""
        host = headers.get("host", "")
        if not self._knows_host(host):
            return 403, say("This server is not known by that name. Use http://127.0.0.1 or start it with --host-name.")
        method = scope.get("method", "WEBSOCKET")
        if method not in SAFE_METHODS:
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != host:
                return 403, FOREIGN
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, FOREIGN
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._limit(scope):
            return 413, TOO_LARGE
        return None

    def _limit(self, scope: Message) -> int:
        """Bytes that the body of a request may have."""
        return min(MAX_UPLOAD, self._room()) if scope["path"].endswith("/upload") else MAX_BODY

    def _knows_host(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._hosts:
            return True
        if not self._any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _is_known(self, headers: dict[str, str]) -> bool:
        cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return any(name == COOKIE and secrets.compare_digest(value, self._session) for name, _, value in cookies)

    async def _login(self, scope: Message, receive: Receive, send: Send) -> None:
        method = scope.get("method")
        if scope["path"] != LOGIN:
            if method == "GET" and scope["path"] == "/":
                await _answer(scope, send, 303, "", {"location": LOGIN})
            else:
                await _answer(scope, send, 401, say("Enter the password first."))
            return
        if method != "POST":
            await _answer(scope, send, 200, _form(), {"content-type": "text/html; charset=utf-8"})
            return
        if not self._may_try((scope.get("client") or ("",))[0]):
            await _answer(scope, send, 429, say("Too many tries. Wait a minute."), {"retry-after": "60"})
            return
        given = parse_qs((await _body(receive, 4096)).decode(errors="replace")).get("password", [""])[0]
        if secrets.compare_digest(given.encode(), self._password.encode()):
            cookie = f"{COOKIE}={self._session}; HttpOnly; SameSite=Lax; Path=/"
            await _answer(scope, send, 303, "", {"location": "/", "set-cookie": cookie})
        else:
            form = _form(say("That is not the password."))
            await _answer(scope, send, 403, form, {"content-type": "text/html; charset=utf-8"})

    def _may_try(self, address: str) -> bool:
        now = time.monotonic()
        if len(self._tries) > ADDRESSES:
            self._tries.clear()
        tries = self._tries[address]
        while tries and now - tries[0] > 60:
            tries.popleft()
        if len(tries) >= TRIES_PER_MINUTE:
            return False
        tries.append(now)
        return True

    async def _pass_on(self, scope: Message, receive: Receive, send: Send, *, limit: int) -> None:
        """Hand the request to the app, counting the bytes that really come (a chunked body names no length)."""
        begun, total = False, 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body") or b"")
            if total > limit:
                raise TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            if total <= limit or begun:  # what the app makes of a body that was cut off is not sent
                begun = True
                await send(message)

        with suppress(TooLargeError):
            await self._app(scope, counted, noted)
        if total > limit and not begun:
            await _answer(scope, send, 413, TOO_LARGE)


async def _body(receive: Receive, limit: int) -> bytes:
    data, more = b"", True
    while more and len(data) <= limit:
        message = await receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
    return data[:limit]


def _with_headers(send: Send) -> Send:
    """A `send` that adds our headers to each response and drops those that open it to other sites."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(key, value) for key, value in message["headers"] if key.lower() not in (*HEADERS, *DROPPED)]
            message = {**message, "headers": [*kept, *HEADERS.items()]}
        await send(message)

    return sending


async def _answer(scope: Message, send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = text.encode()
    fields = {
        "content-type": "text/plain; charset=utf-8",
        "content-length": str(len(body)),
        "cache-control": "no-store",
    }
    if status == 413:
        fields["connection"] = "close"  # the rest of the body is not wanted
    fields |= headers or {}
    encoded = [(key.encode(), value.encode()) for key, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
