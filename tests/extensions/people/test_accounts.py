"""The accounts file, logins of people with accounts, the commands for these, and what does not go with them."""

import shutil
import socket
import time
import tomllib
from pathlib import Path

import pytest
from markupsafe import escape
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from limner_extensions.people import accounts
from tests.conftest import CHARACTER
from tests.integration.runs.test_processes import limner
from trainer.errors import UserError
from ui import launch
from ui.server import logins
from ui.server.security import SecurityMiddleware


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
    for name in ("", "../x", "x" * 65):
        with pytest.raises(UserError, match="not a valid name for a user"):
            accounts.add(name)
    assert accounts.read().keys() == {"anna", "ben"}


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


OURS = "http://127.0.0.1:7860"


async def whose(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.scope["user"])


def shared(source: object = accounts.read) -> TestClient:
    app = SecurityMiddleware(Starlette(routes=[Route("/x", whose)]), accounts=source)
    return TestClient(app, base_url=OURS, follow_redirects=False)


def test_a_wrong_name_is_answered_as_a_wrong_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    password = accounts.add("anna")
    monkeypatch.setattr(logins, "FREE", 100)
    stranger = shared()
    tries = [("anna", "wrong"), ("nobody", "wrong"), ("nobody", password), ("", password), ("Anna", password)]
    tries += [("anna", ""), ("nobody", ""), ('"><script>', "x")]
    pages = set()
    for name, password in tries:
        answer = stranger.post("/login", data={"name": name, "password": password})
        assert answer.status_code == 403
        assert "Wrong name or password." in answer.text
        assert "<script>" not in answer.text
        pages.add(answer.text.replace(f'value="{escape(name)}"', 'value=""'))
    assert len(pages) == 1
    took = {"anna": [], "nobody": []}
    for _ in range(5):
        for name, times in took.items():
            begun = time.process_time()
            stranger.post("/login", data={"name": name, "password": "wrong"})
            times.append(time.process_time() - begun)
    assert 0.5 < min(took["anna"]) / min(took["nobody"]) < 2
    assert min(took["nobody"]) > 0.01  # a hash is made for a name that is not there too


def test_guessing_somebodys_password_is_slowed_down(home: Path) -> None:
    password = accounts.add("anna")
    stranger = shared()
    for names in ([f"n{n}" for n in range(7)], ["anna"] * 7):
        statuses = [stranger.post("/login", data={"name": name, "password": "x"}).status_code for name in names]
        assert statuses == [403] * 5 + [429] * 2
    assert stranger.post("/login", data={"name": "anna", "password": password}).status_code == 429


def test_a_login_opens_the_page_of_that_user_until_they_are_removed_or_have_a_new_password(home: Path) -> None:
    here, there = shared(), shared()
    assert there.post("/login", data={"name": " ben ", "password": accounts.add("ben")}).status_code == 303
    assert (here.get("/").headers["location"], here.get("/x").status_code) == ("/login", 401)
    assert 'name="name"' in here.get("/login").text
    here.post("/login", data={"name": "anna", "password": accounts.add("anna")})
    assert (here.get("/x").text, there.get("/x").text) == ("anna", "ben")
    again = accounts.add("anna")
    assert here.get("/x").status_code == 401
    here.post("/login", data={"name": "anna", "password": again})
    assert (here.get("/x").text, there.get("/x").text) == ("anna", "ben")
    accounts.remove("anna")
    assert here.get("/x").status_code == 401
    accounts.remove("ben")  # and with nobody left nothing is open
    assert here.get("/x").status_code == 401
    here.post("/login", data={"name": "anna", "password": accounts.add("anna")})
    text = accounts.file().read_text()
    accounts.file().write_text(text + "secret = 1")
    for path in ("/x", "/login"):
        assert here.get(path).status_code == 503
        assert "secret" not in here.get(path).text
    accounts.file().write_text(text + " ")
    assert here.get("/x").text == "anna"


def test_commands_add_and_remove_a_person_who_keeps_their_files(home: Path) -> None:
    added = limner("add-person", "anna")
    assert added.returncode == 0
    assert accounts.read()["anna"].accepts(added.stdout.removeprefix("Password of anna: ").strip())
    removed = limner("remove-person", "anna")
    assert removed.stdout == f"anna can no longer log in. Their files stay in {home / 'people' / 'anna'}.\n"
    assert (accounts.read(), (home / "people" / "anna" / "datasets").is_dir()) == ({}, True)
    again = limner("remove-person", "anna")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "There is no account 'anna' in people.toml. Accounts: -.\n"


@pytest.mark.parametrize(
    ("variable", "arguments", "words"),
    [
        ("LIMNER_CLUSTER", [], "--cluster is for a page without accounts"),
        ("LIMNER_NOTIFY", [], "LIMNER_NOTIFY would send the previews of everyone"),
        ("LIMNER_PASSWORD", [], "LIMNER_PASSWORD sets one password for everyone, but people.toml has accounts"),
        ("", ["--host", "0.0.0.0"], "Add --listen"),
    ],
)
def test_what_does_not_go_with_accounts(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, arguments: list[str], words: str
) -> None:
    monkeypatch.setenv(variable or "UNUSED", "127.0.0.1:6379")
    accounts.add("anna")
    with socket.socket() as listener, pytest.raises(UserError, match=words):
        launch.make_server(launch.parse_options(arguments), listener)
