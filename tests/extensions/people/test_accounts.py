"""The accounts file: its content, what is refused, and how it is read again."""

import shutil
import tomllib
from pathlib import Path

import pytest

from limner_extensions.people import accounts
from tests.conftest import CHARACTER
from trainer.errors import UserError


def test_a_password_is_made_and_only_its_hash_is_kept(home: Path) -> None:
    assert accounts.read() == {}, "there is no file yet"
    password = accounts.add("anna")
    other = accounts.add("ben")
    text = accounts.file().read_text()
    assert password not in text
    assert accounts.file().stat().st_mode & 0o777 == 0o600
    assert accounts.read()["anna"].accepts(password)
    assert not accounts.read()["anna"].accepts(other)
    assert not accounts.read()["anna"].accepts("")
    tables = tomllib.loads(text)
    assert tables.keys() == {"anna", "ben"}
    assert len({table["salt"] for table in tables.values()}) == 2
    assert [len(bytes.fromhex(tables["anna"][key])) for key in ("salt", "hash")] == [16, 64]
    newer = accounts.add("anna")
    assert not accounts.read()["anna"].accepts(password)
    assert accounts.read()["anna"].accepts(newer)
    with pytest.raises(UserError, match="There is already an account 'anna'"):
        accounts.add("Anna")  # two names are never one folder


def test_each_has_a_home_with_the_examples(home: Path) -> None:
    shutil.copytree(CHARACTER, home / "datasets" / "example-character", ignore=shutil.ignore_patterns(".cache"))
    accounts.add("anna")
    folder = accounts.home("anna")
    for path in (folder, folder.parent, folder / "outputs", folder / "datasets"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert len(list((folder / "datasets" / "example-character").glob("*.png"))) == 14
    shutil.rmtree(folder / "datasets" / "example-character")
    accounts.add("anna")
    assert not list((folder / "datasets").iterdir())  # what a user removed does not come back with a new password


@pytest.mark.parametrize("name", ["", "../x", "x" * 65])
def test_a_name_that_is_none_is_refused(home: Path, name: str) -> None:
    with pytest.raises(UserError, match="not a valid name for a user"):
        accounts.add(name)
    assert not accounts.file().exists()


GOOD = 'salt = "00"\nhash = "00"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'[anna]\n{GOOD}shell = "x"', "'anna.shell' in people.toml is unknown"),
        (f'["../x"]\n{GOOD}', "not a valid name"),
        ('[anna]\nsalt = ""\nhash = ""', "no password for 'anna'"),
        ("[anna", "cannot be read"),
        ('[anna]\nsalt = "xy"\nhash = "00"', "cannot be read"),
    ],
)
def test_what_is_unknown_in_the_accounts_file_is_named(home: Path, text: str, words: str) -> None:
    accounts.file().write_text(text)
    with pytest.raises(UserError, match=words):
        accounts.read()
