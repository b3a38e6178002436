"""Sessions of the browsers that are logged in: they expire, and the page lists and ends them."""

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from trainer.i18n import LANGUAGE, _
from ui.templates import render

KEPT = 1000  # sessions; beyond that, the oldest are dropped
IDLE = 7 * 86400.0  # seconds without a request after which a session ends
LIFETIME = 30 * 86400.0  # seconds after which it ends in any case


@dataclass
class Session:
    """A login: since when, from where, and with which browser."""

    address: str
    browser: str
    number: str = field(default_factory=lambda: secrets.token_hex(8))  # to name it by, which lets nobody in
    started: float = field(default_factory=lambda: time.time())
    seen: float = field(default_factory=lambda: time.time())

    @property
    def expired(self) -> bool:
        """Return True if it has ended by itself."""
        now = time.time()
        return now - self.seen > IDLE or now - self.started > LIFETIME


class Sessions:
    """All sessions of a server, by the secret in the browser's cookie; they end with the server."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def add(self, session: Session) -> str:
        """Begin a session; returns its secret."""
        if len(self._sessions) >= KEPT:
            del self._sessions[next(iter(self._sessions))]
        secret = secrets.token_urlsafe(32)
        self._sessions[secret] = session
        return secret

    def find(self, secret: str) -> Session | None:
        """Return the session with a secret, which is thereby in use; None if there is none, or it has expired."""
        session = self._sessions.get(secret)
        if session is None:
            return None
        if session.expired:
            del self._sessions[secret]
            return None
        session.seen = time.time()
        return session

    def end(self, secret: str) -> Session | None:
        """End the session with a secret; returns it if there was one."""
        return self._sessions.pop(secret, None)

    def listed(self) -> list[Session]:
        """Return all sessions, the latest first."""
        current = [session for session in self._sessions.values() if not session.expired]
        return sorted(current, key=lambda session: -session.seen)

    def end_number(self, number: str) -> None:
        """End a session by its number."""
        for secret, session in list(self._sessions.items()):
            if session.number == number:
                del self._sessions[secret]


def page(sessions: Iterable[Session], current: Session) -> str:
    """Render the list of sessions, each with a button that ends it."""
    rows = []
    for session in sessions:
        text = _(
            "{browser}, from {address}, last used {time}",
            browser=session.browser[:80] or "?",
            address=session.address,
            time=time.strftime("%Y-%m-%d %H:%M", time.localtime(session.seen)),
        )
        if session is current:
            text += " · " + _("this browser")
        rows.append((session.number, text))
    return render("sessions.html", language=LANGUAGE, sessions=rows)
