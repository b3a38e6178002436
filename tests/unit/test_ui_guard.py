"""The guard, asked as a browser, another web site and a stranger would ask."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from ui import guard
from ui.guard import Guard

OURS = "http://127.0.0.1:7860"


async def hello(request: Request) -> PlainTextResponse:
    body = await request.body()
    return PlainTextResponse(
        f"{len(body)}", headers={"Access-Control-Allow-Origin": "http://evil.example", "Server": "x"}
    )


def client(base_url: str = OURS, **options: object) -> TestClient:
    routes = [Route(path, hello, methods=["GET", "POST"]) for path in ("/", "/x", "/gradio_api/upload")]
    return TestClient(Guard(Starlette(routes=routes), **options), base_url=base_url, follow_redirects=False)


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
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    ],
)  # fmt: skip
def test_a_post_from_another_site_is_refused(headers: dict[str, str]) -> None:
    assert client().post("/gradio_api/upload", content=b"x", headers=headers).status_code == 403
    assert client().get("/", headers=headers).status_code == 200


def test_a_large_body_is_refused_whether_or_not_it_names_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY", 10)
    monkeypatch.setattr(guard, "MAX_UPLOAD", 20)
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
    assert stranger.get("/x", cookies={guard.COOKIE: "guess"}).status_code == 401


def test_the_password_opens_the_page() -> None:
    person = client(password="secret")
    assert person.post("/login", data={"password": "wrong"}).status_code == 403
    answer = person.post("/login", data={"password": "secret"})
    assert answer.status_code == 303
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert person.get("/x").status_code == 200


def test_guessing_is_slowed_down() -> None:
    stranger = client(password="secret")
    statuses = [stranger.post("/login", data={"password": str(number)}).status_code for number in range(12)]
    assert statuses[:10] == [403] * 10
    assert statuses[10:] == [429] * 2
    assert stranger.post("/login", data={"password": "secret"}).status_code == 429


def test_an_upload_that_the_disk_has_no_room_for_is_refused() -> None:
    full = client(room=lambda: 10)
    assert full.post("/gradio_api/upload", content=b"a" * 10).status_code == 200
    for body in (b"a" * 11, iter([b"a" * 6, b"a" * 6])):
        answer = full.post("/gradio_api/upload", content=body)
        assert answer.status_code == 413
        assert "make room" in answer.text


def test_many_addresses_that_guess_do_not_fill_the_memory() -> None:
    guarded = Guard(Starlette(), password="secret")
    assert all(guarded._may_try(f"10.0.{number // 256}.{number % 256}") for number in range(5000))
    assert len(guarded._tries) <= guard.ADDRESSES + 1
