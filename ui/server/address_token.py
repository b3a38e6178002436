"""Token in the printed address: without it, no other user of this machine gets in by 127.0.0.1.

It stays the same, as does a generated password, so that bookmarks and open pages go on working after a restart.
"""

import hashlib
import secrets
from urllib.parse import parse_qs

from trainer import paths, storage
from trainer.i18n import _
from ui.server.request_body import Message, Receive
from ui.server.security import App, Send, answer, cookie_of

BYTES, PASSWORD_BYTES = 24, 12  # of randomness
YEAR = 365 * 86400  # seconds
REFUSAL = _("Open the address that Limner printed when it started: it ends in a token.")


def read(*, renew: bool = False) -> str:
    """Return the token of this home folder, or make a new one."""
    return _kept(".token", BYTES, renew)


def read_password(*, renew: bool = False) -> str:
    """Return the generated password of this home folder, or make a new one."""
    return _kept(".password", PASSWORD_BYTES, renew)


def _kept(name: str, count: int, renew: bool) -> str:
    """Return the secret of `count` random bytes in a file; one that is missing or damaged is made."""
    file = paths.outputs() / name
    try:
        secret = "" if renew else file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        secret = ""
    if len(secret) < count:
        secret = secrets.token_urlsafe(count)
        storage.write(file, secret)
    return secret


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
        secret = cookie_of(headers, self._cookie) or headers.get("authorization", "").removeprefix("Bearer ")
        query = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if scope.get("method") == "GET" and scope["path"] == "/" and self._is(query):
            # Also where the cookie is set already, so that the token leaves the address bar.
            cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Lax; Path=/; Max-Age={YEAR}"
            await answer(scope, send, 303, "", {"location": "/", "set-cookie": cookie})
        elif self._is(secret):
            await self._app(scope, receive, send)
        else:
            await answer(scope, send, 401, REFUSAL)

    def _is(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())
