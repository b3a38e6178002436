"""Security middleware: hosts, origins, body sizes, passwords and headers. Pure ASGI.

Gradio itself accepts any Host header and requests from other web sites, and does not limit password guessing.
"""

import asyncio
import ipaddress
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

from trainer.i18n import LANGUAGE, _, ngettext
from ui import audit
from ui.server import content_policy, sessions
from ui.server.logins import Attempts
from ui.server.passwords import Password, hashed
from ui.server.request_body import (
    IMAGES,
    MAX_BODY,
    MAX_UPLOAD,
    UPLOAD,
    Budget,
    Message,
    Receive,
    RefusedError,
    RequestBody,
)
from ui.server.sessions import Session, Sessions
from ui.templates import render

Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
CROSS_SITE = _("Requests from other web sites are refused.")
COOKIE = "limner-session"
LOGIN = "/login"
LOGOUT = "/logout"
SESSIONS = "/sessions"
HTML = {"content-type": "text/html; charset=utf-8"}
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"SAMEORIGIN",
    b"referrer-policy": b"same-origin",
}
DROPPED = (b"access-control-allow-origin", b"access-control-allow-credentials", b"server")


def _login_form(note: str = "") -> str:
    """Render the page that asks for the password."""
    return render("login.html", language=LANGUAGE, note=note)


class SecurityMiddleware:
    """Passes on requests from our own page; refuses all others with a sentence."""

    def __init__(
        self,
        app: App,
        *,
        hosts: frozenset[str] = LOOPBACK,
        any_address: bool = False,
        password: str = "",
        upload_room: Callable[[], int] = lambda: MAX_UPLOAD,
    ) -> None:
        """Wrap an app.

        Args:
            app: the app to protect.
            hosts: names under which the server may be addressed.
            any_address: also accept any IP address as Host; a foreign name that points here is still refused.
            password: the password of the page; "" = none needed.
            upload_room: returns the bytes that all uploads in progress may still write.
        """
        self._app = app
        self._hosts = hosts
        self._any_address = any_address
        self._budget = Budget(upload_room)
        self._password = hashed(password) if password else None
        self._sessions = Sessions()
        self._attempts = Attempts()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer or pass on one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        nonce = secrets.token_urlsafe(16)
        scope = {**scope, content_policy.NONCE: nonce}
        send = _with_headers(send, {**HEADERS, b"content-security-policy": content_policy.header(nonce)})
        refusal = self._refusal(scope, headers)
        if refusal:
            await answer(scope, send, *refusal)
        elif self._password is None:
            await self._pass_on(scope, receive, send)
        else:
            await self._authenticate(scope, headers, receive, send, self._password)

    async def _authenticate(
        self, scope: Message, headers: dict[str, str], receive: Receive, send: Send, password: Password
    ) -> None:
        """Pass on requests of browsers that are logged in, and handle login and logout."""
        secret = cookie_of(headers, COOKIE)
        session = self._sessions.find(secret)
        if scope["path"] == LOGIN:
            await self._login(scope, headers, receive, send, password)
        elif scope["path"] == LOGOUT:
            fields = {"location": LOGIN, "set-cookie": f"{COOKIE}=; HttpOnly; SameSite=Lax; Path=/; Max-Age=0"}
            if self._sessions.end(secret):
                fields["clear-site-data"] = '"cache", "storage"'  # the next user of this browser may be another one
            await answer(scope, send, 303, "", fields)
        elif session and scope["path"] == SESSIONS:
            await self._show_sessions(scope, receive, send, session)
        elif session:
            await self._pass_on(scope, receive, send)
        elif scope.get("method") == "GET" and scope["path"] == "/":
            await answer(scope, send, 303, "", {"location": LOGIN})
        else:
            await answer(scope, send, 401, _("Log in first."))

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return (status, sentence) for a request that is refused even if its user is logged in."""
        host = headers.get("host", "")
        if not self._accepts_host(host):
            return 403, _(
                "This server does not accept that host name. Use http://127.0.0.1 or start it with --host-name."
            )
        method = scope.get("method", "WEBSOCKET")
        if method not in SAFE_METHODS:
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != host:
                return 403, CROSS_SITE
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, CROSS_SITE
        if not headers.get("content-length", "0").isdigit():
            return 400, _("The request is damaged.")
        return None

    def _accepts_host(self, host: str) -> bool:
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

    async def _show_sessions(self, scope: Message, receive: Receive, send: Send, session: Session) -> None:
        """List the sessions; a POST ends one of them."""
        if scope.get("method") == "POST":
            fields = parse_qs((await _body(receive, 4096)).decode(errors="replace"))
            self._sessions.end_number(fields.get("end", [""])[0])
            await answer(scope, send, 303, "", {"location": SESSIONS})
            return
        await answer(scope, send, 200, sessions.page(self._sessions.listed(), session), HTML)

    async def _login(
        self, scope: Message, headers: dict[str, str], receive: Receive, send: Send, password: Password
    ) -> None:
        if scope.get("method") != "POST":
            await answer(scope, send, 200, _login_form(), HTML)
            return
        fields = parse_qs((await _body(receive, 4096)).decode(errors="replace"))
        entered = fields.get("password", [""])[0]
        address = str((scope.get("client") or ("",))[0])
        if wait := math.ceil(self._attempts.wait(address)):
            message = ngettext(
                "Too many attempts. Try again in {n} second.", "Too many attempts. Try again in {n} seconds.", wait
            )
            await answer(scope, send, 429, message, {"retry-after": str(wait)})
            return
        self._attempts.failed(address)  # until it turns out otherwise, as others may try meanwhile
        # Hashing takes its time. In a thread, so that other requests need not wait for it.
        if await asyncio.to_thread(password.accepts, entered):
            self._attempts.succeeded(address)
            secret = self._sessions.add(Session(address, headers.get("user-agent", "")))
            cookie = f"{COOKIE}={secret}; HttpOnly; SameSite=Lax; Path=/"
            if scope.get("scheme") == "https":
                cookie += "; Secure"
            audit.record("login", address=address)
            await answer(scope, send, 303, "", {"location": "/", "set-cookie": cookie})
        else:
            audit.record("failed login", address=address)
            await answer(scope, send, 403, _login_form(_("Wrong password.")), HTML)

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request to the app, with a body that is limited."""
        started = False
        if scope["path"] in (UPLOAD, IMAGES) and scope.get("method") == "POST":
            body = RequestBody(scope, receive, MAX_UPLOAD, self._budget)
        else:
            body = RequestBody(scope, receive, MAX_BODY)

        async def filtered(message: Message) -> None:
            nonlocal started
            if not body.refusal or started:  # what the app answers to a truncated body is not sent
                started = True
                await send(message)

        length = next((int(value) for key, value in scope["headers"] if key.lower() == b"content-length"), 0)
        try:
            if body.expect(length):
                with suppress(RefusedError):
                    await self._app(scope, body.receive, filtered)
        finally:
            body.close()
        if body.refusal and not started:
            await answer(scope, send, *body.refusal)


def cookie_of(headers: dict[str, str], wanted: str) -> str:
    """Return the value of a cookie of a request; "" if it has none of that name."""
    cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return next((value for name, _, value in cookies if name == wanted), "")


async def _body(receive: Receive, limit: int) -> bytes:
    data, more = b"", True
    while more and len(data) <= limit:
        message = await receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
    return data[:limit]


def _with_headers(send: Send, headers: Mapping[bytes, bytes]) -> Send:
    """Wrap `send` to add our headers to each response and drop those that would open it to other sites."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(key, value) for key, value in message["headers"] if key.lower() not in (*headers, *DROPPED)]
            message = {**message, "headers": [*kept, *headers.items()]}
        await send(message)

    return sending


async def answer(scope: Message, send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    """Answer a request with a text, which is plain unless the headers say otherwise."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = text.encode()
    fields = {
        "content-type": "text/plain; charset=utf-8",
        "content-length": str(len(body)),
        "cache-control": "no-store",
    }
    if status in (408, 413):
        fields["connection"] = "close"  # the rest of the body is not read
    fields |= headers or {}
    encoded = [(key.encode(), value.encode()) for key, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
