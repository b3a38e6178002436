"""A server for each user, behind a proxy."""

import hashlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn

from limner_extensions.people import accounts
from limner_extensions.people.per_user_proxy import PerUserProxy
from tests.conftest import HANG, python, wait
from ui.launch import bind
from ui.server import security
from ui.server.security import SecurityMiddleware

COMMAND = (sys.executable, "-m", "tests.workspace")


@contextmanager
def serving(proxy: PerUserProxy) -> Iterator[str]:
    with bind("127.0.0.1", 0) as listener:
        app = SecurityMiddleware(proxy, accounts=accounts.read)
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for the tests after which the server of a user is as before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_HOME", str(home := tmp_path_factory.mktemp("home")))
        yield home


@pytest.fixture(scope="module")
def shared(shared_home: Path) -> Iterator[httpx.Client]:
    with serving(PerUserProxy(COMMAND)) as address, visiting(address, "anna") as client:
        yield client


@pytest.fixture
def address(home: Path) -> Iterator[str]:
    with serving(PerUserProxy(COMMAND)) as address:
        yield address


@contextmanager
def visiting(address: str, name: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=HANG) as client:
        password = accounts.add(name)
        assert client.post("/login", data={"name": name, "password": password}).status_code == 303
        yield client


@pytest.fixture
def anna(address: str) -> Iterator[httpx.Client]:
    with visiting(address, "anna") as client:
        yield client


@pytest.mark.slow
def test_the_page_says_that_it_is_being_started(
    anna: httpx.Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMNER_SLOW", "1")
    answer = anna.get("/")
    assert 'http-equiv="refresh"' in answer.text
    assert "Starting your workspace" in answer.text
    begun = time.monotonic()
    assert anna.get("/echo").json()["LIMNER_HOME"] == str(home / "people" / "anna")
    assert time.monotonic() - begun > 0.5
    wait(lambda: "refresh" not in anna.get("/").text)
    assert anna.get("/").json()["LIMNER_SHARED"] == str(home)


def test_a_request_goes_through_as_it_came_without_the_session(shared: httpx.Client) -> None:
    odd = "/echo/../echo?a=%2e%2e&b=c%20d&e"
    shared.cookies.set("other", "1")
    fields = {"X-One": "1", "Connection": "close, X-Two", "X-Two": "2", "Host": "localhost:7", "TE": "trailers"}
    request = shared.build_request("GET", "/", headers=fields, extensions={"target": odd.encode()})
    answer = shared.send(request)
    assert answer.status_code == 404  # the dots were not taken away on the way
    request = shared.build_request("GET", "/", headers=fields, extensions={"target": b"/ec%68o?a=%2e%2e&b=c%20d&e"})
    answer = shared.send(request)
    echo = answer.json()
    assert echo["target"] == "/ec%68o?a=%2e%2e&b=c%20d&e"
    came = dict(echo["header"])
    assert (came["host"], came["x-one"], came["cookie"]) == ("localhost:7", "1", "other=1")
    assert not {"x-two", "te", "transfer-encoding", "content-length"} & came.keys()
    assert (answer.headers["x-ours"], answer.headers["vary"]) == ("1", "cookie")
    assert "keep-alive" not in answer.headers
    assert len(answer.headers.get_list("date")) == 1


def test_an_answer_is_streamed_and_ends_with_the_browser(shared: httpx.Client, shared_home: Path) -> None:
    with shared.stream("GET", "/events") as answer:
        lines = (line for line in answer.iter_lines() if line)
        first, second = next(lines), next(lines)
        assert time.monotonic() - float(first.split()[-1]) < 60  # of 1,000; one clock is for all processes
        assert second.startswith("data: 1 ")
        assert not (shared_home / "people" / "anna" / "gone").exists()
    wait((shared_home / "people" / "anna" / "gone").exists)


def test_a_body_goes_through_in_pieces(shared: httpx.Client, shared_home: Path) -> None:
    came, whole = shared_home / "people" / "anna" / "came", hashlib.sha256(bytes(2**17) + b"end").hexdigest()

    def pieces() -> Iterator[bytes]:
        yield bytes(2**17)
        wait(lambda: came.exists() and came.read_text() == str(2**17))  # it is there before the rest is sent
        yield b"end"

    for fields in ({}, {"Content-Length": str(2**17 + 3)}, {"Expect": "100-continue"}):
        came.unlink(missing_ok=True)
        answer = shared.post("/gradio_api/upload", content=pieces(), headers=fields)
        assert answer.json() == [2**17 + 3, whole]
    assert shared.post("/gradio_api/upload").json()[0] == 0


def test_a_request_with_two_lengths_is_no_second_request(shared: httpx.Client) -> None:
    cookie = f"{security.COOKIE}={shared.cookies[security.COOKIE]}"
    both = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\nContent-Length: 60\r\n"
    hidden = "GET /die HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    before = shared.get("/echo").json()["pid"]
    with socket.create_connection(("127.0.0.1", shared.base_url.port), timeout=HANG) as connection:
        connection.sendall(f"{both}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}".encode())
        assert not connection.recv(4096).startswith(b"HTTP/1.1 2")
    assert shared.get("/echo").json()["pid"] == before


@pytest.mark.slow
def test_a_server_that_died_is_started_anew(anna: httpx.Client) -> None:
    before = anna.get("/echo").json()["pid"]
    answer = anna.get("/die")
    assert (answer.status_code, answer.text) == (502, "Your workspace was closed. Reload the page to open it again.")
    wait(lambda: not psutil.pid_exists(before))
    wait(lambda: anna.get("/echo").status_code == 200)
    again = anna.get("/echo").json()["pid"]
    assert again != before
    with pytest.raises(httpx.RemoteProtocolError):  # and not an answer that looks whole
        anna.get("/half")
    wait(lambda: not psutil.pid_exists(again))
    wait(lambda: anna.get("/echo").status_code == 200)


@pytest.mark.slow
def test_a_server_that_cannot_start_is_tried_again_when_asked(anna: httpx.Client, home: Path) -> None:
    broken = home / "people" / "anna" / "broken"
    broken.touch()
    assert "Starting your workspace" in anna.get("/").text
    wait(lambda: anna.get("/").text.startswith("Your workspace could not be started."))
    broken.unlink()
    assert "Starting your workspace" in anna.get("/").text
    wait(lambda: "pid" in anna.get("/").text)


@pytest.mark.slow
def test_a_server_ends_without_requests_but_not_with_an_open_one(home: Path) -> None:
    with serving(PerUserProxy(COMMAND, idle=0.5)) as address, visiting(address, "anna") as anna:
        with anna.stream("GET", "/events") as answer:
            number, lines = anna.get("/echo").json()["pid"], answer.iter_lines()
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert next(lines, "ended") != "ended"
        wait(lambda: not psutil.pid_exists(number))
        assert anna.get("/echo").json()["pid"] != number


def test_all_end_with_the_proxy(home: Path) -> None:
    """Each user has one of their own, which is there until then."""
    proxy = PerUserProxy(COMMAND)
    with serving(proxy) as address, visiting(address, "anna") as anna, visiting(address, "ben") as ben:
        assert proxy._sockets.stat().st_mode & 0o777 == 0o700
        hers, his, again = (client.get("/echo").json() for client in (anna, ben, anna))
        assert hers["pid"] == again["pid"] != his["pid"]
        assert (his["LIMNER_HOME"], httpx.get(address + "/echo").status_code) == (str(home / "people" / "ben"), 401)
        accounts.remove("anna")
        assert anna.get("/echo").status_code == 401
    assert not [process for process in (hers, his) if psutil.pid_exists(process["pid"])]
    assert not proxy._sockets.exists()


PROXY = """
import socket, sys
from limner_extensions.people import accounts
from ui import launch
from ui.server.passwords import NO_ACCOUNT
accounts.read = lambda: {"anna": NO_ACCOUNT}
launch.make_server(launch.parse_options([]), socket.socket())
sys.exit(str([name for name in ("gradio", "fastapi", "torch", "numpy") if name in sys.modules] or ""))
"""


def test_the_proxy_imports_no_more_than_it_needs() -> None:
    done = python("-c", PROXY)
    assert not done.stderr.strip(), done.stderr
