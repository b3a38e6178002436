"""Passwords of the page: their hashes, and those that are too easy to guess."""

import hashlib
import secrets
from dataclasses import dataclass

SHORTEST = 8  # characters of a password that someone chooses
COMMON = frozenset(  # some of those that are tried first, without the digits at their end
    {
        "password",
        "passwort",
        "qwertyuiop",
        "iloveyou",
        "sunshine",
        "princess",
        "football",
        "changeme",
        "letmein",
        "limner",
    }
)


@dataclass(frozen=True)
class Account:
    """Account of a user: the scrypt hash of the password, with its own salt."""

    salt: bytes
    hash: bytes

    def accepts(self, password: str) -> bool:
        """Return True if this is the password, in the same time either way."""
        return secrets.compare_digest(_hash(password, self.salt), self.hash)


NO_ACCOUNT = Account(bytes(16), bytes(64))  # accepts no password; stands for unknown names, which take as long to check


def with_password(password: str) -> Account:
    """Create an account with this password."""
    salt = secrets.token_bytes(16)
    return Account(salt, _hash(password, salt))


def is_weak(password: str) -> bool:
    """Return True if a password would be among the first that someone tries."""
    plain = password.casefold()
    return len(password) < SHORTEST or len(set(plain)) < 4 or plain.isdigit() or plain.rstrip("0123456789!") in COMMON


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)  # 16 MB and about 50 ms
