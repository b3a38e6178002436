"""The security middleware, asked as a browser, another web site and a stranger would ask."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.conftest import HANG
from trainer.errors import UserError
from ui import launch
from ui.server import address_token, connections, logins, security, sessions
from ui.server.address_token import TokenGate
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
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff")
    assert "object-src 'none'" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers
    assert client().post("/x", content=b"abc", headers={"Origin": OURS, "Sec-Fetch-Site": "same-origin"}).text == "3"


def test_foreign_hosts_are_refused_and_ours_pass() -> None:
    def status(host: str, **options: object) -> int:
        return client(**options).get("/", headers={"Host": host}).status_code

    for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.7", "", "[", "localhost@evil.example"):
        assert status(host) == 403
    for host in ("127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:7860"):
        assert status(host) == 200
    assert (status("192.168.1.7:7860", any_address=True), status("evil.example", any_address=True)) == (200, 403)
    named = client(hosts=frozenset({"anna.limner.example"}))
    assert named.get("/", headers={"Host": "anna.limner.example"}).status_code == 200
    assert named.post("/x", headers={"Host": "anna.limner.example", "Origin": "https://ben.example"}).status_code == 403


@pytest.mark.parametrize(
    "site", [OURS.replace("7860", "9999"), "http://evil.example", "null", "cross-site", "same-site"]
)
def test_a_change_from_another_site_is_refused(site: str) -> None:
    headers = {"Sec-Fetch-Site" if site.endswith("-site") else "Origin": site}
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = client().request(method, "/gradio_api/upload", content=b"x", headers=headers)
        assert (answer.status_code, answer.text) == (403, security.CROSS_SITE)
    assert client().get("/", headers=headers).status_code == 200


@pytest.mark.parametrize(("site", "code"), [("http://evil.example", 1008), (OURS, 1000)])
def test_a_socket_from_another_site_is_refused(site: str, code: int) -> None:
    """From ours, it is only closed because the app has none there."""
    with pytest.raises(WebSocketDisconnect) as closed:
        client().websocket_connect(OURS.replace("http", "ws") + "/x", headers={"Origin": site}).__enter__()
    assert closed.value.code == code


def test_a_large_body_is_refused_with_or_without_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that ends as that of uploads does takes no more than any other."""
    monkeypatch.setattr(security, "MAX_BODY", 10)
    monkeypatch.setattr(security, "MAX_UPLOAD", 20)
    assert client().post("/x", content=b"a" * 11).status_code == 413
    assert client().post("/x", content=iter([b"a" * 6, b"a" * 6])).status_code == 413
    assert client().post("/gradio_api/upload", content=b"a" * 15).status_code == 200
    assert client().post("/gradio_api/upload", content=iter([b"a" * 15, b"a" * 6])).status_code == 413
    assert client().post("/x", content=b"a", headers={"Content-Length": "-1"}).status_code == 400
    everywhere = TestClient(SecurityMiddleware(Starlette(routes=[Route("/{path:path}", hello, methods=["POST"])])))
    for path in ["/x/upload", "/upload", "/gradio_api/call/upload", "/gradio_api/upload/", "//gradio_api/upload"]:
        for body in (b"a" * 15, iter([b"a" * 6, b"a" * 6])):
            assert everywhere.post(OURS + path, content=body).status_code == 413


def test_the_password_opens_the_page(home: Path) -> None:
    user = client(password="secret")
    assert (user.get("/").headers["location"], user.get("/x").status_code) == ("/login", 401)
    assert user.post("/gradio_api/upload", content=b"x").status_code == 401
    assert "<form" in user.get("/login").text
    assert user.get("/x", headers={"Cookie": f"{security.COOKIE}=guess"}).status_code == 401
    assert user.post("/login", data={"password": "wrong"}).status_code == 403
    answer = user.post("/login", data={"password": "secret"})
    assert answer.status_code == 303
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "Secure" not in answer.headers["set-cookie"]
    assert user.get("/x").status_code == 200
    for path in ("/login", "/logout"):
        assert client().get(path).status_code == 404, "without a password"
    lines = [json.loads(line) for line in (home / "outputs" / ".audit.log").read_text(encoding="utf-8").splitlines()]
    assert [line["action"] for line in lines] == ["failed login", "login"]
    assert all(line["address"] == "testclient" and "secret" not in str(line) for line in lines)
    answer = client("https://127.0.0.1:7860", password="secret").post("/login", data={"password": "secret"})
    assert "Secure" in answer.headers["set-cookie"], "it is sent over TLS alone where there is TLS"


def test_guessing_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(logins.time, "monotonic", lambda: now[0])
    stranger = client(password="secret")

    def attempt(password: str) -> tuple[int, int]:
        answer = stranger.post("/login", data={"password": password})
        return answer.status_code, int(answer.headers.get("retry-after", 0))

    assert [attempt("wrong") for _ in range(5)] == [(403, 0)] * 5
    assert attempt("secret") == (429, 2)  # the right one has to wait, too
    for wait in (2, 4, 8, 16, 32, 60, 60):
        now[0] += wait - 1
        assert attempt("wrong") == (429, 1)
        now[0] += 1
        assert attempt("wrong") == (403, 0)
    now[0] += 60
    assert attempt("secret")[0] == 303


def test_whoever_guesses_locks_out_nobody_else() -> None:
    attempts = logins.Attempts()
    for _ in range(20):
        attempts.failed("203.0.113.9")
    assert 50 < attempts.wait("203.0.113.77") <= 60  # the same network
    assert (attempts.wait("198.51.100.1"), attempts.wait("2001:db8:1:2::5")) == (0, 0)
    assert logins.network("2001:db8:1:2::5") == logins.network("2001:db8:1:2:9::1")
    assert logins.network("::ffff:203.0.113.9") == logins.network("203.0.113.77") == "203.0.113.0/24"


def test_a_right_password_passes_while_other_networks_guess() -> None:
    attempts = logins.Attempts()
    for number in range(500):
        attempts.failed(f"10.{number // 256}.{number % 256}.1")
        assert attempts.wait("198.51.100.1") == 0
    attempts = logins.Attempts()  # which fill no memory, however many addresses there are
    for number in range(3 * logins.REMEMBERED):
        attempts.failed(f"10.{number // 256}.{number % 256}.1")
    assert len(attempts._failures) <= logins.REMEMBERED


def test_attempts_at_once_do_not_all_pass() -> None:
    """The guess of 60 at the same time, of which each is hashed in a thread."""
    stranger = client(password="secret")
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda number: stranger.post("/login", data={"password": str(number)}), range(60)))
    assert sum(answer.status_code == 403 for answer in answers) <= 6


def test_sessions_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "KEPT", 2)
    user = client(password="secret")
    cookies = []
    for _ in range(3):
        user.post("/login", data={"password": "secret"})
        cookies.append(user.cookies[security.COOKIE])
    user.cookies.clear()
    statuses = [user.get("/x", headers={"Cookie": f"{security.COOKIE}={cookie}"}).status_code for cookie in cookies]
    assert statuses == [401, 200, 200]


def logged_in(*browsers: str) -> tuple[SecurityMiddleware, list[TestClient]]:
    """Return a page with a password, and the clients that have logged in."""
    app = SecurityMiddleware(Starlette(routes=[Route("/x", hello)]), password="secret")
    clients = []
    for browser in browsers:
        clients.append(TestClient(app, base_url=OURS, follow_redirects=False, headers={"user-agent": browser}))
        assert clients[-1].post("/login", data={"password": "secret"}).status_code == 303
    return app, clients


def test_logging_out_ends_that_session_alone() -> None:
    _app, (here, there) = logged_in("a", "b")
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


def test_sessions_are_listed_and_ended() -> None:
    app, (here, there) = logged_in("Firefox <script>", "Chrome")
    listing = here.get("/sessions").text
    assert "Chrome, from testclient" in listing
    assert "Firefox &lt;script&gt;" in listing
    assert listing.count("this browser") == 1
    assert here.cookies[security.COOKIE] not in listing
    number = app._sessions.listed()[1].number
    is_here = app._sessions.find(here.cookies[security.COOKIE]).number == number
    ended, other = (here, there) if is_here else (there, here)
    assert other.post("/sessions", data={"end": number}).status_code == 303
    assert (ended.get("/x").status_code, other.get("/x").status_code) == (401, 200)
    assert client(password="secret").get("/sessions").status_code == 401


def test_a_session_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_800_000_000.0]
    monkeypatch.setattr(sessions.time, "time", lambda: now[0])
    _app, (idle, used) = logged_in("a", "b")
    for _ in range(5):
        now[0] += sessions.IDLE - 1
        status = used.get("/x").status_code
        if now[0] - 1_800_000_000 <= sessions.LIFETIME:
            assert status == 200
    assert (status, idle.get("/x").status_code) == (401, 401)


def test_a_password_that_is_easy_to_guess_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for password in ["short", "password1", "PassWort123!", "aaaaaaaaaa", "12345678", "sunshine"]:
        monkeypatch.setenv("LIMNER_PASSWORD", password)
        with pytest.raises(UserError, match="easy to guess"):
            launch.choose_password(launch.parse_options([]))
    monkeypatch.setenv("LIMNER_PASSWORD", "correct horse")
    assert launch.choose_password(launch.parse_options([])) == "correct horse"


def test_what_opens_the_page_stays_until_a_new_one_is_asked_for(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A password that was made, and the token: a restart keeps both, --new-token neither."""
    usual, new = (launch.parse_options(["--listen", *more]) for more in ([], ["--new-token"]))
    first, same, other = map(launch.choose_password, (usual, usual, new))
    assert first == same != other
    assert capsys.readouterr().out.count(f"Password for the page: {first}") == 2
    token = address_token.read()
    assert address_token.read() == token != address_token.read(renew=True)


# The token in the address ---------------------------------------------------------------------------------------


def test_without_the_token_no_other_user_of_this_machine_gets_in(home: Path) -> None:
    token = address_token.read()
    assert (home / "outputs" / ".token").read_text(encoding="ascii") == token
    routes = [Route(path, hello, methods=["GET", "POST"]) for path in ("/", "/x")]
    app = SecurityMiddleware(TokenGate(Starlette(routes=routes), token))
    user, stranger = (TestClient(app, base_url=OURS, follow_redirects=False) for _ in range(2))
    for path in ("/", "/x", "/media/dataset/rin/01.png", f"/x?token={token}", "/?token=", "/?token=wrong"):
        assert stranger.get(path).status_code == 401
    assert stranger.post(f"/?token={token}").status_code == 401
    answer = user.get(f"/?token={token}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert user.get("/x").status_code == 200
    assert user.get(f"/?token={token}").status_code == 303, "the address bar shows no token, though the cookie is set"
    assert user.get("/?token=wrong").status_code == 200
    assert stranger.get("/x", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert stranger.get("/x", headers={"Cookie": "limner-token=x", "Authorization": "Bearer "}).status_code == 401


EACH = 8


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that takes `EACH` connections of one network."""
    monkeypatch.setattr(connections, "EACH", EACH)
    app = Starlette(routes=[Route("/", lambda _request: PlainTextResponse("hello"))])
    listener = socket.create_server(("0.0.0.0", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=connections.LimitedProtocol, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield int(listener.getsockname()[1])
    server.should_exit = True
    thread.join()
    listener.close()


def connect(port: int, address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=HANG, source_address=(address, 0))


def is_answered(link: socket.socket) -> bool:
    try:
        link.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return link.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def test_connections_are_limited_by_network(port: int) -> None:
    """One machine with many addresses: each opens as many connections as all of its network may have."""
    links = [connect(port, f"127.0.0.{host}") for host in (2, 3, 4, 5) for _ in range(EACH)]
    answered = [is_answered(link) for link in links]
    assert answered == [True] * EACH + [False] * (len(links) - EACH)
    elsewhere = connect(port, "127.0.1.2")
    assert is_answered(elsewhere)
    for link in (*links, elsewhere):
        link.close()
