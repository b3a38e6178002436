"""Password of the page: its hash, and the check for passwords that are too easy to guess."""

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
class Password:
    """Scrypt hash of a password, with its salt."""

    salt: bytes
    hash: bytes

    def accepts(self, password: str) -> bool:
        """Return True if this is the password, in the same time either way."""
        return secrets.compare_digest(_hash(password, self.salt), self.hash)


def hashed(password: str) -> Password:
    """Hash a password with a new salt."""
    salt = secrets.token_bytes(16)
    return Password(salt, _hash(password, salt))


def is_weak(password: str) -> bool:
    """Return True if a password would be among the first that someone tries."""
    plain = password.casefold()
    return len(password) < SHORTEST or len(set(plain)) < 4 or plain.isdigit() or plain.rstrip("0123456789!") in COMMON


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)  # 16 MB and about 50 ms
