"""The security middleware, asked as a browser, another web site and a stranger would ask."""

import time
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from ui.server import accounts, security
from ui.server.security import SecurityMiddleware

OURS = "http://127.0.0.1:7860"


async def hello(request: Request) -> PlainTextResponse:
    body = await request.body()
    return PlainTextResponse(
        f"{len(body)}", headers={"Access-Control-Allow-Origin": "http://evil.example", "Server": "x"}
    )


def client(base_url: str = OURS, **options: object) -> TestClient:
    routes = [Route(path, hello, methods=["GET", "POST"]) for path in ("/", "/x", "/gradio_api/upload")]
    app = SecurityMiddleware(Starlette(routes=routes), **options)
    return TestClient(app, base_url=base_url, follow_redirects=False)


def test_our_own_page_passes_and_gets_the_headers() -> None:
    answer = client().get("/")
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "object-src 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers
    assert client().post("/x", content=b"abc", headers={"Origin": OURS, "Sec-Fetch-Site": "same-origin"}).text == "3"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.7", "", "[", "localhost@evil.example"]
)
def test_a_foreign_host_is_refused(host: str) -> None:
    assert client().get("/", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860"])
def test_our_hosts_pass(host: str) -> None:
    assert client().get("/", headers={"Host": host}).status_code == 200


def test_any_address_but_no_foreign_name_when_listening() -> None:
    listening = client(any_address=True)
    assert listening.get("/", headers={"Host": "192.168.1.7:7860"}).status_code == 200
    assert listening.get("/", headers={"Host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_request_of_another_site_that_could_change_something_is_refused(headers: dict[str, str]) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = client().request(method, "/gradio_api/upload", content=b"x", headers=headers)
        assert (answer.status_code, answer.text) == (403, security.CROSS_SITE)
    assert client().get("/", headers=headers).status_code == 200


def test_a_large_body_is_refused_whether_or_not_it_names_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MAX_BODY", 10)
    monkeypatch.setattr(security, "MAX_UPLOAD", 20)
    assert client().post("/x", content=b"a" * 11).status_code == 413
    assert client().post("/x", content=iter([b"a" * 6, b"a" * 6])).status_code == 413
    assert client().post("/gradio_api/upload", content=b"a" * 15).status_code == 200
    assert client().post("/gradio_api/upload", content=iter([b"a" * 15, b"a" * 6])).status_code == 413
    assert client().post("/x", content=b"a", headers={"Content-Length": "-1"}).status_code == 413


def test_without_the_password_nothing_is_answered() -> None:
    stranger = client(password="secret")
    assert stranger.get("/").headers["location"] == "/login"
    assert stranger.get("/x").status_code == 401
    assert stranger.post("/gradio_api/upload", content=b"x").status_code == 401
    assert "<form" in stranger.get("/login").text
    assert stranger.get("/x", cookies={security.COOKIE: "guess"}).status_code == 401


def test_the_password_opens_the_page() -> None:
    user = client(password="secret")
    assert user.post("/login", data={"password": "wrong"}).status_code == 403
    answer = user.post("/login", data={"password": "secret"})
    assert answer.status_code == 303
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert user.get("/x").status_code == 200


def test_guessing_is_slowed_down() -> None:
    stranger = client(password="secret")
    statuses = [stranger.post("/login", data={"password": str(number)}).status_code for number in range(12)]
    assert statuses[:10] == [403] * 10
    assert statuses[10:] == [429] * 2
    assert stranger.post("/login", data={"password": "secret"}).status_code == 429


def test_an_upload_that_the_disk_has_no_room_for_is_refused() -> None:
    full = client(upload_limit=lambda: 10)
    assert full.post("/gradio_api/upload", content=b"a" * 10).status_code == 200
    for body in (b"a" * 11, iter([b"a" * 6, b"a" * 6])):
        answer = full.post("/gradio_api/upload", content=body)
        assert answer.status_code == 413
        assert "free some disk space" in answer.text


def test_many_addresses_that_guess_do_not_fill_the_memory() -> None:
    guarded = SecurityMiddleware(Starlette(), password="secret")
    assert all(guarded._may_try(f"10.0.{number // 256}.{number % 256}") for number in range(5000))
    assert len(guarded._attempts) <= security.ADDRESSES + 1


def test_without_a_password_there_is_nothing_to_log_out_of() -> None:
    assert client().get("/logout").status_code == 404
    assert client().get("/login").status_code == 404


def test_logging_out_ends_that_session_alone() -> None:
    app = SecurityMiddleware(Starlette(routes=[Route("/x", hello)]), password="secret")
    here, there = (TestClient(app, base_url=OURS, follow_redirects=False) for _ in range(2))
    for browser in (here, there):
        browser.post("/login", data={"password": "secret"})
    old = here.cookies[security.COOKIE]
    assert old != there.cookies[security.COOKIE]
    answer = here.get("/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert security.COOKIE not in here.cookies
    assert here.get("/x", headers={"Cookie": f"{security.COOKIE}={old}"}).status_code == 401
    assert there.get("/x").status_code == 200
    assert there.post("/logout", headers={"Origin": "http://evil.example"}).status_code == 403
    assert there.get("/x").status_code == 200


def test_sessions_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "SESSIONS", 2)
    monkeypatch.setattr(security, "TRIES_PER_MINUTE", 100)
    user = client(password="secret")
    cookies = []
    for _ in range(3):
        user.post("/login", data={"password": "secret"})
        cookies.append(user.cookies[security.COOKIE])
    user.cookies.clear()
    statuses = [user.get("/x", headers={"Cookie": f"{security.COOKIE}={cookie}"}).status_code for cookie in cookies]
    assert statuses == [401, 200, 200]


# Accounts ------------------------------------------------------------------------------------------------------


async def whose(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.scope["user"])


def shared(source: object = accounts.read) -> TestClient:
    app = SecurityMiddleware(Starlette(routes=[Route("/x", whose)]), accounts=source)
    return TestClient(app, base_url=OURS, follow_redirects=False)


def test_a_name_and_its_password_open_the_page_of_that_user(home: Path) -> None:
    passwords = {name: accounts.add(name) for name in ("anna", "ben")}
    user = shared()
    assert user.get("/").headers["location"] == "/login"
    assert 'name="name"' in user.get("/login").text
    assert user.get("/x").status_code == 401
    for name, password in passwords.items():
        assert user.post("/login", data={"name": f" {name} ", "password": password}).status_code == 303
        assert user.get("/x").text == name


def test_a_wrong_name_is_answered_as_a_wrong_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    password = accounts.add("anna")
    monkeypatch.setattr(security, "TRIES_PER_MINUTE", 100)
    stranger = shared()
    tries = [
        ("anna", "wrong"),
        ("nobody", "wrong"),
        ("nobody", password),
        ("", password),
        ("Anna", password),
        ("anna", ""),
        ("nobody", ""),
        ("", ""),
    ]
    pages = set()
    for name, password in tries:
        answer = stranger.post("/login", data={"name": name, "password": password})
        assert answer.status_code == 403
        assert "Wrong name or password." in answer.text
        pages.add(answer.text.replace(f'value="{name}"', 'value=""'))
    assert len(pages) == 1
    took = {"anna": [], "nobody": []}
    for _ in range(5):
        for name, times in took.items():
            begun = time.process_time()
            stranger.post("/login", data={"name": name, "password": "wrong"})
            times.append(time.process_time() - begun)
    assert 0.5 < min(took["anna"]) / min(took["nobody"]) < 2
    assert min(took["nobody"]) > 0.01  # a hash is made for a name that is not there too


def test_what_was_typed_as_a_name_is_no_part_of_the_page(home: Path) -> None:
    accounts.add("anna")
    answer = shared().post("/login", data={"name": '"><script>', "password": "x"})
    assert "<script>" not in answer.text


def test_guessing_somebodys_password_is_slowed_down(home: Path) -> None:
    password = accounts.add("anna")
    stranger = shared()
    statuses = [stranger.post("/login", data={"name": f"n{n}", "password": "x"}).status_code for n in range(12)]
    assert statuses == [403] * 10 + [429] * 2
    assert stranger.post("/login", data={"name": "anna", "password": password}).status_code == 429


def test_who_is_removed_or_has_a_new_password_has_to_log_in_again(home: Path) -> None:
    here = shared()
    here.post("/login", data={"name": "anna", "password": accounts.add("anna")})
    assert here.get("/x").text == "anna"
    again = accounts.add("anna")
    assert here.get("/x").status_code == 401
    here.post("/login", data={"name": "anna", "password": again})
    assert here.get("/x").text == "anna"
    accounts.add("ben")
    assert here.get("/x").text == "anna"
    accounts.remove("anna")
    assert here.get("/x").status_code == 401
    accounts.remove("ben")  # and with nobody left nothing is open
    assert here.get("/x").status_code == 401


def test_an_accounts_file_that_was_damaged_lets_nobody_in(home: Path) -> None:
    here = shared()
    here.post("/login", data={"name": "anna", "password": accounts.add("anna")})
    text = accounts.file().read_text()
    accounts.file().write_text(text + "secret = 1")
    for path in ("/x", "/login"):
        assert here.get(path).status_code == 503
        assert "secret" not in here.get(path).text
    accounts.file().write_text(text + " ")
    assert here.get("/x").text == "anna"


def test_behind_the_proxy_any_name_is_ours() -> None:
    behind = client(hosts=None)
    assert behind.get("/", headers={"Host": "limner.example"}).status_code == 200
    assert behind.post("/x", headers={"Host": "a", "Origin": "http://b"}).status_code == 403
