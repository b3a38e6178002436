"""Security middleware: hosts, origins, body sizes, passwords and headers. Pure ASGI.

Gradio by itself takes any Host, executes posts that another web site sends, and has no limit on guessing a password.
"""

import asyncio
import html
import ipaddress
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

from trainer.errors import UserError
from trainer.i18n import LANGUAGE, say
from ui.server import accounts
from ui.server.accounts import Person

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY = 8 * 2**20
MAX_UPLOAD = 2 * 2**30
TRIES_PER_MINUTE = 10
ADDRESSES = 1000  # whose tries are remembered
SESSIONS = 1000  # logins that are remembered; of more the oldest are forgotten
TOO_LARGE = say(
    "This upload is too large, or the disk is nearly full. Add fewer or smaller files at a time, or make room."
)
FOREIGN = say("Requests from other web sites are refused.")
COOKIE = "limner-session"
LOGIN = "/login"
LOGOUT = "/logout"
HTML = {"content-type": "text/html; charset=utf-8"}
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
<form method="post"><h1>Limner</h1>{who}<label for="password">{password}</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus required>
<button>{enter}</button><p role="alert">{note}</p></form></html>"""
WHO = """<label for="name">{name}</label>
<input id="name" name="name" value="{given}" autocomplete="username" autocapitalize="none" maxlength="64" autofocus
required>"""


def _form(*, named: bool, given: str = "", note: str = "") -> str:
    """The page that asks for the password, and for a name where several people have one."""
    who = WHO.format(name=html.escape(say("Name")), given=html.escape(given)) if named else ""
    said = {"password": say("Password"), "enter": say("Enter"), "note": note}
    return FORM.format(language=LANGUAGE, who=who, **{key: html.escape(text) for key, text in said.items()})


class TooLargeError(Exception):
    """A body that grew beyond its limit while it came in."""


class Guard:
    """Lets through what comes from our own page, answers the rest in one sentence."""

    def __init__(
        self,
        app: App,
        *,
        hosts: frozenset[str] | None = LOOPBACK,
        any_address: bool = False,
        password: str = "",
        register: Callable[[], Mapping[str, Person]] | None = None,
        room: Callable[[], int] = lambda: MAX_UPLOAD,
    ) -> None:
        """Guard an app.

        Args:
            app: what is behind the guard.
            hosts: names by which the server may be called; None = any, where nobody but our door can call it.
            any_address: also take any IP address as Host; another site's name that points here is still refused.
            password: of everybody; "" = none needed.
            register: the people who have a password of their own, as they are now; the app is told whose request it
                is as `person` of its scope.
            room: bytes that uploads may take at present.
        """
        self._app = app
        self._hosts = hosts
        self._any_address = any_address
        self._room = room
        self._named = register is not None
        self._register = register
        if password:
            everybody = {"": accounts.of(password)}
            self._register = lambda: everybody
        self._sessions: dict[str, tuple[str, Person]] = {}
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
            await answer(scope, send, *refusal)
        elif self._register is None:
            await self._pass_on(scope, receive, send)
        else:
            await self._let_in(scope, headers, receive, send, self._register)

    async def _let_in(
        self,
        scope: Message,
        headers: dict[str, str],
        receive: Receive,
        send: Send,
        register: Callable[[], Mapping[str, Person]],
    ) -> None:
        """Pass on what comes from who has logged in, and see to logging in and out."""
        try:
            known = register()
        except UserError:  # it was damaged after the start; what is wrong with it is nothing for strangers
            told = say("The register of people cannot be read. Ask who runs this server.")
            await answer(scope, send, 503, told)
            return
        session = _session(headers)
        name, person = self._sessions.get(session, ("", None))
        if scope["path"] == LOGIN:
            await self._login(scope, receive, send, known)
        elif scope["path"] == LOGOUT:
            fields = {"location": LOGIN, "set-cookie": f"{COOKIE}=; HttpOnly; SameSite=Lax; Path=/; Max-Age=0"}
            if self._sessions.pop(session, None):
                fields["clear-site-data"] = '"cache", "storage"'  # the next one at this browser may be another person
            await answer(scope, send, 303, "", fields)
        elif person is not None and known.get(name) == person:  # not removed since, nor given a new password
            await self._pass_on({**scope, "person": name}, receive, send)
        elif scope.get("method") == "GET" and scope["path"] == "/":
            await answer(scope, send, 303, "", {"location": LOGIN})
        else:
            await answer(scope, send, 401, say("Enter the password first."))

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return (status, sentence) for a request that is refused whoever sends it."""
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
        if self._hosts is None:
            return True
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

    async def _login(self, scope: Message, receive: Receive, send: Send, known: Mapping[str, Person]) -> None:
        if scope.get("method") != "POST":
            await answer(scope, send, 200, _form(named=self._named), HTML)
            return
        if not self._may_try((scope.get("client") or ("",))[0]):
            await answer(scope, send, 429, say("Too many tries. Wait a minute."), {"retry-after": "60"})
            return
        fields = parse_qs((await _body(receive, 4096)).decode(errors="replace"))
        name = fields.get("name", [""])[0].strip() if self._named else ""
        person, given = known.get(name, accounts.NOBODY), fields.get("password", [""])[0]
        # A hash takes its time, which the others' requests do not wait for; so it does for a name that is not there.
        if await asyncio.to_thread(person.opens, given):
            session = secrets.token_urlsafe(32)
            if len(self._sessions) >= SESSIONS:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[session] = name, person
            cookie = f"{COOKIE}={session}; HttpOnly; SameSite=Lax; Path=/"
            await answer(scope, send, 303, "", {"location": "/", "set-cookie": cookie})
        else:
            note = say("This name and this password do not belong together.")
            note = note if self._named else say("That is not the password.")
            await answer(scope, send, 403, _form(named=self._named, given=name, note=note), HTML)

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

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand the request to the app, counting the bytes that really come (a chunked body names no length)."""
        limit, begun, total = self._limit(scope), False, 0

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
            await answer(scope, send, 413, TOO_LARGE)


def _session(headers: dict[str, str]) -> str:
    """The session that a request names; "" = none."""
    cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return next((value for name, _, value in cookies if name == COOKIE), "")


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


async def answer(scope: Message, send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    """Answer a request with a text; plain, if the headers do not say otherwise."""
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
