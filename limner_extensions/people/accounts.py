"""Accounts of a shared server: users, their password hashes and their home folders.

They are stored in `people.toml` in the home folder: a salt and a hash for each name, never a password.
"""

import os
import secrets
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import tomlkit

from trainer import foreign_text, paths, storage
from trainer.errors import UserError
from ui.server.passwords import Account, with_password

KEYS = ("salt", "hash")
EXAMPLES = ("example-character", "example-style")


def file() -> Path:
    """Return the path of the accounts file."""
    return paths.home() / "people.toml"


def home(name: str) -> Path:
    """Return the home folder of a user, with their datasets and runs."""
    return paths.home() / "people" / name


def read() -> Mapping[str, Account]:
    """Return all accounts by name; none if there is no accounts file.

    Raises:
        UserError: the file cannot be read, or something in it is unknown.
    """
    try:
        stat = file().stat()
        return _read(file(), (stat.st_mtime_ns, stat.st_ino))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise UserError("people.toml cannot be read.", "Correct it, or delete it and add the accounts again.") from None


@lru_cache(maxsize=1)
def _read(path: Path, _version: tuple[int, int]) -> Mapping[str, Account]:
    """Read a version of the accounts file. It is needed at each request, and rarely changes."""
    accounts = {}
    for name, table in foreign_text.read_toml(path).items():
        paths.check_name(name, "user")  # also the name of a folder
        if not isinstance(table, dict):
            raise _unknown(name)
        for key in table.keys() - set(KEYS):
            raise _unknown(f"{name}.{key}")
        salt, password_hash = (bytes.fromhex(str(table.get(key, ""))) for key in KEYS)
        if not salt or not password_hash:
            raise UserError(
                "people.toml has no password for {name!r}.", "Set a new one with: limner add-person {name}", name=name
            )
        accounts[name] = Account(salt, password_hash)
    return accounts


def _unknown(key: str) -> UserError:
    return UserError("{key!r} in people.toml is unknown.", "Correct or remove it.", key=key)


def add(name: str) -> str:
    """Add an account, or give an existing one a new password; returns the password, which is stored nowhere.

    Raises:
        UserError: the name is not allowed, or too similar to another one.
    """
    known = dict(read())
    paths.check_name(name, "user")
    for other in known:
        if other != name and other.casefold() == name.casefold():  # some disks take both for one folder
            raise UserError(
                "There is already an account {other!r}.", "Choose a name that differs in more than case.", other=other
            )
    password = secrets.token_urlsafe(12)
    _write(known | {name: with_password(password)})
    folder = home(name)
    for part in (folder.parent, folder, folder / "datasets", folder / "outputs"):
        part.mkdir(mode=0o700, exist_ok=True)
    if name not in known:
        _copy_examples(folder / "datasets")
    return password


def _copy_examples(datasets: Path) -> None:
    for example in EXAMPLES:
        source, target = paths.datasets() / example, datasets / example
        if source.is_dir() and not target.exists():
            _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    def fill(folder: Path) -> None:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)

    storage.write_folder(target, fill)


def remove(name: str) -> None:
    """Remove an account; the home folder stays.

    Raises:
        UserError: there is no such account.
    """
    known = dict(read())
    if name not in known:
        names = ", ".join(known) or "-"
        raise UserError("There is no account {name!r} in people.toml.", "Accounts: {known}.", name=name, known=names)
    del known[name]
    _write(known)


def _write(accounts: Mapping[str, Account]) -> None:
    tables = {name: {"salt": account.salt.hex(), "hash": account.hash.hex()} for name, account in accounts.items()}
    mask = os.umask(0o077)  # so that no other user of the machine can ever read the file
    try:
        storage.write(file(), tomlkit.dumps(tables))
    finally:
        os.umask(mask)
