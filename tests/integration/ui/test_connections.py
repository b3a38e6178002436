"""Limits on connections, by a server that listens: how many there may be of one network."""

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ui.server import connections

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
    return socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(address, 0))


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
