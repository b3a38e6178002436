"""Token in the printed address: without it, no other user of this machine gets in by 127.0.0.1."""

import hashlib
import secrets
from urllib.parse import parse_qs

from trainer import paths, storage
from trainer.i18n import _
from ui.server.request_body import Message, Receive
from ui.server.security import App, Send, answer, cookie_of

BYTES = 24  # of randomness
YEAR = 365 * 86400  # seconds
REFUSAL = _("Open the address that Limner printed when it started: it ends in a token.")


def read() -> str:
    """Return the token of this home folder, which stays the same, so that bookmarks and open pages go on working."""
    file = paths.outputs() / ".token"
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if len(token) < BYTES:
        token = secrets.token_urlsafe(BYTES)
        storage.write(file, token)
    return token


class TokenGate:
    """Passes on requests with the token: in a cookie, which the printed address sets, or as a bearer token."""

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._token = token
        # A browser sends the cookies of one server to all on the same host.
        self._cookie = f"limner-token-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer or pass on one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        given = cookie_of(headers, self._cookie) or headers.get("authorization", "").removeprefix("Bearer ")
        query = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if self._is(given):
            await self._app(scope, receive, send)
        elif scope.get("method") == "GET" and scope["path"] == "/" and self._is(query):
            cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Lax; Path=/; Max-Age={YEAR}"
            await answer(scope, send, 303, "", {"location": "/", "set-cookie": cookie})
        else:
            await answer(scope, send, 401, REFUSAL)

    def _is(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())
