"""The security middleware, asked as a browser, another web site and a stranger would ask."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from trainer.errors import UserError
from ui import launch
from ui.server import accounts, address_token, logins, request_body, security, sessions
from ui.server.address_token import TokenGate
from ui.server.request_body import Receive
from ui.server.security import Message, SecurityMiddleware, Send

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
    assert client().post("/x", content=b"a", headers={"Content-Length": "-1"}).status_code == 400


@pytest.mark.parametrize(
    "path", ["/x/upload", "/upload", "/gradio_api/call/upload", "/gradio_api/upload/", "//gradio_api/upload"]
)
def test_what_is_sent_to_an_invented_address_is_no_upload(path: str) -> None:
    """400 MB to an address that ends as that of uploads does are refused by their length, or once they are too many."""
    sent: list[Message] = []
    arrived = 0

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    async def receive() -> Message:
        nonlocal arrived
        arrived += 2**20
        return {"type": "http.request", "body": bytes(2**20), "more_body": arrived < 400 * 2**20}

    async def send(message: Message) -> None:
        sent.append(message)

    def post(*headers: tuple[bytes, bytes]) -> int:
        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"host", b"127.0.0.1"), *headers]}
        with ThreadPoolExecutor(1) as other_thread:  # in this one a browser test may have left a loop running
            other_thread.submit(lambda: asyncio.run(SecurityMiddleware(app)(scope, receive, send))).result()
        return int(sent[-2]["status"])

    assert post((b"content-length", b"%d" % (400 * 2**20))) == 413
    assert arrived == 0
    assert post() == 413
    assert arrived <= request_body.MAX_BODY + 2**20


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
        attempts.failed("anna", "203.0.113.9")
    assert 50 < attempts.wait("anna", "203.0.113.77") <= 60  # the same network
    assert attempts.wait("anna", "198.51.100.1") == 0  # anna herself, from elsewhere
    assert attempts.wait("ben", "203.0.113.9") == 0
    assert attempts.wait("anna", "2001:db8:1:2::5") == 0
    assert logins.network("2001:db8:1:2::5") == logins.network("2001:db8:1:2:9::1")
    assert logins.network("::ffff:203.0.113.9") == logins.network("203.0.113.77") == "203.0.113.0/24"


def test_a_right_password_passes_while_other_networks_guess() -> None:
    attempts = logins.Attempts()
    for number in range(500):
        attempts.failed("", f"10.{number // 256}.{number % 256}.1")
        assert attempts.wait("", "198.51.100.1") == 0


def test_attempts_at_once_do_not_all_pass() -> None:
    """The guess of 60 at the same time, of which each is hashed in a thread."""
    stranger = client(password="secret")
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda number: stranger.post("/login", data={"password": str(number)}), range(60)))
    assert sum(answer.status_code == 403 for answer in answers) <= 6


def test_an_upload_that_the_disk_has_no_room_for_is_refused() -> None:
    full = client(upload_room=lambda: 10)
    assert full.post("/gradio_api/upload", content=b"a" * 10).status_code == 200
    for body in (b"a" * 11, iter([b"a" * 6, b"a" * 6])):
        answer = full.post("/gradio_api/upload", content=body)
        assert answer.status_code == 413
        assert "free some disk space" in answer.text


def test_many_addresses_that_guess_do_not_fill_the_memory() -> None:
    attempts = logins.Attempts()
    for number in range(3 * logins.REMEMBERED):
        attempts.failed("anna", f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
        attempts.failed(f"name {number}", "10.0.0.1")
    assert len(attempts._failures) <= logins.REMEMBERED


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
    monkeypatch.setattr(sessions, "KEPT", 2)
    user = client(password="secret")
    cookies = []
    for _ in range(3):
        user.post("/login", data={"password": "secret"})
        cookies.append(user.cookies[security.COOKIE])
    user.cookies.clear()
    statuses = [user.get("/x", headers={"Cookie": f"{security.COOKIE}={cookie}"}).status_code for cookie in cookies]
    assert statuses == [401, 200, 200]


def logged_in(app: SecurityMiddleware, browser: str, url: str = OURS) -> TestClient:
    user = TestClient(app, base_url=url, follow_redirects=False, headers={"user-agent": browser})
    assert user.post("/login", data={"password": "secret"}).status_code == 303
    return user


def test_sessions_are_listed_and_ended() -> None:
    app = SecurityMiddleware(Starlette(routes=[Route("/x", hello)]), password="secret")
    here, there = logged_in(app, "Firefox <script>"), logged_in(app, "Chrome")
    listing = here.get("/sessions").text
    assert "Chrome, from testclient" in listing
    assert "Firefox &lt;script&gt;" in listing
    assert listing.count("this browser") == 1
    assert here.cookies[security.COOKIE] not in listing
    number = app._sessions.of("")[1].number
    ended = next(user for user, name in ((here, "Firefox"), (there, "Chrome"))
                 if app._sessions.find(user.cookies[security.COOKIE]).number == number)  # fmt: skip
    other = there if ended is here else here
    assert other.post("/sessions", data={"end": number}).status_code == 303
    assert ended.get("/x").status_code == 401
    assert other.get("/x").status_code == 200
    assert client(password="secret").get("/sessions").status_code == 401


def test_a_session_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_800_000_000.0]
    monkeypatch.setattr(sessions.time, "time", lambda: now[0])
    app = SecurityMiddleware(Starlette(routes=[Route("/x", hello)]), password="secret")
    idle, used = logged_in(app, "a"), logged_in(app, "b")
    for _ in range(5):
        now[0] += sessions.IDLE - 1
        status = used.get("/x").status_code
        if now[0] - 1_800_000_000 <= sessions.LIFETIME:
            assert status == 200
    assert status == 401
    assert idle.get("/x").status_code == 401


def test_the_cookie_is_sent_over_tls_alone_where_there_is_tls() -> None:
    for url, secure in (("https://127.0.0.1:7860", True), (OURS, False)):
        user = client(url, password="secret")
        assert ("Secure" in user.post("/login", data={"password": "secret"}).headers["set-cookie"]) == secure


def test_logins_are_in_the_audit_log(home: Path) -> None:
    user = client(password="secret")
    user.post("/login", data={"password": "wrong"})
    user.post("/login", data={"password": "secret"})
    lines = [json.loads(line) for line in (home / "outputs" / ".audit.log").read_text(encoding="utf-8").splitlines()]
    assert [line["action"] for line in lines] == ["failed login", "login"]
    assert all(line["address"] == "testclient" and "secret" not in str(line) for line in lines)


@pytest.mark.parametrize("password", ["short", "password1", "PassWort123!", "aaaaaaaaaa", "12345678", "sunshine"])
def test_a_password_that_is_easy_to_guess_is_refused(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_PASSWORD", password)
    with pytest.raises(UserError, match="easy to guess"):
        launch.choose_password(launch.parse_options([]), has_accounts=False)
    monkeypatch.setenv("LIMNER_PASSWORD", "correct horse")
    assert launch.choose_password(launch.parse_options([]), has_accounts=False) == "correct horse"


def test_a_body_that_arrives_too_slowly_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "WITHIN", 0.2)

    async def send_slowly() -> int:
        sent: list[Message] = []
        parts = iter(range(100))

        async def receive() -> Message:
            await asyncio.sleep(0.1)
            next(parts)
            return {"type": "http.request", "body": b"a", "more_body": True}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/x", "headers": [(b"host", b"127.0.0.1")], "client": None}
        await SecurityMiddleware(Starlette(routes=[Route("/x", hello, methods=["POST"])]))(scope, receive, send)
        return int(sent[0]["status"])

    with ThreadPoolExecutor(1) as other_thread:  # in this one a browser test may have left a loop running
        assert other_thread.submit(lambda: asyncio.run(send_slowly())).result() == 408


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
    monkeypatch.setattr(logins, "FREE", 100)
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
    for names in ([f"n{n}" for n in range(7)], ["anna"] * 7):
        statuses = [stranger.post("/login", data={"name": name, "password": "x"}).status_code for name in names]
        assert statuses == [403] * 5 + [429] * 2
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


# The token in the address ---------------------------------------------------------------------------------------


def test_without_the_token_no_other_user_of_this_machine_gets_in(home: Path) -> None:
    token = address_token.read()
    assert address_token.read() == token  # also after a restart
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
