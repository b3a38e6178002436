"""Accounts of a shared server: users, their password hashes and their home folders.

The register is `accounts.toml` in the home folder, with a salt and a hash of each one's password. It knows no password.
"""

import hashlib
import os
import secrets
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import tomlkit

from trainer import paths, storage
from trainer.errors import UserError

KEYS = ("salt", "hash")
EXAMPLES = ("example-character", "example-style")


@dataclass(frozen=True)
class Person:
    """Account of a user: the scrypt hash of the password, with its own salt."""

    salt: bytes
    hash: bytes

    def opens(self, password: str) -> bool:
        """Tell whether this is the password, in the same time either way."""
        return secrets.compare_digest(_hash(password, self.salt), self.hash)


NOBODY = Person(bytes(16), bytes(64))  # whom no password opens: what is asked about a name that is not there


def of(password: str) -> Person:
    """Create an account with this password."""
    salt = secrets.token_bytes(16)
    return Person(salt, _hash(password, salt))


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)  # 16 MB and some 50 ms


def register() -> Path:
    """Return the path of the accounts file."""
    return paths.home() / "people.toml"


def home(name: str) -> Path:
    """The home of a person, with their data sets and runs."""
    return paths.home() / "people" / name


def everybody() -> Mapping[str, Person]:
    """All people by their names, as the register has them now; none if there is no register.

    Raises:
        UserError: it cannot be read, or something in it is unknown.
    """
    try:
        found = register().stat()
        return _read(register(), (found.st_mtime_ns, found.st_ino))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise UserError("people.toml cannot be read.", "Mend it, or remove it and add the people again.") from None


@lru_cache(maxsize=1)
def _read(path: Path, _version: tuple[int, int]) -> Mapping[str, Person]:
    """The register as it was in a version of its file; it is asked at each request, and seldom another one."""
    found = {}
    for name, told in tomllib.loads(path.read_text(encoding="utf-8")).items():
        paths.check_name(name, "person")  # a folder is called so
        if not isinstance(told, dict):
            raise _unknown(name)
        for key in told.keys() - set(KEYS):
            raise _unknown(f"{name}.{key}")
        salt, hashed = (bytes.fromhex(str(told.get(key, ""))) for key in KEYS)
        if not salt or not hashed:
            raise UserError(
                "people.toml has no password of {name!r}.", "Make a new one with --add-person {name}.", name=name
            )
        found[name] = Person(salt, hashed)
    return found


def _unknown(key: str) -> UserError:
    return UserError("{key!r} in people.toml is unknown.", "Correct or remove it.", key=key)


def add(name: str) -> str:
    """Enter somebody in the register, or give a new password to who is there; returns it, as it is kept nowhere.

    Raises:
        UserError: the name is none, or nearly another person's.
    """
    known = dict(everybody())
    paths.check_name(name, "person")
    for other in known:
        if other != name and other.casefold() == name.casefold():  # some disks take both for one folder
            raise UserError("There is {other!r} already.", "Choose a name that differs in more.", other=other)
    password = secrets.token_urlsafe(12)
    _write(known | {name: of(password)})
    folder = home(name)
    for part in (folder.parent, folder, folder / "datasets", folder / "outputs"):
        part.mkdir(mode=0o700, exist_ok=True)
    for example in EXAMPLES:
        source, place = paths.datasets() / example, folder / "datasets" / example
        if name not in known and source.is_dir() and not place.exists():
            _copy(source, place)
    return password


def _copy(source: Path, place: Path) -> None:
    def fill(part: Path) -> None:
        shutil.copytree(source, part, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)

    storage.write_folder(place, fill)


def remove(name: str) -> None:
    """Take somebody out of the register; their folder stays.

    Raises:
        UserError: they are not in it.
    """
    known = dict(everybody())
    if known.pop(name, None) is None:
        raise UserError(
            "There is no {name!r} in people.toml.", "In it are: {known}.", name=name, known=", ".join(known) or "-"
        )
    _write(known)


def _write(people: Mapping[str, Person]) -> None:
    text = tomlkit.dumps({name: {"salt": one.salt.hex(), "hash": one.hash.hex()} for name, one in people.items()})
    before = os.umask(0o077)  # so that its file is nobody else's to read, from its first byte on
    try:
        storage.write(register(), text)
    finally:
        os.umask(before)
