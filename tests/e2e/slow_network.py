"""A slow network between a browser and the server: one of the requests that change something is held back at a time."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from tests.conftest import HANG

Way = Literal["there", "back"]  # a request that arrives late, or one whose answer does
HOP = {"connection", "transfer-encoding", "keep-alive"}


@dataclass
class Hold:
    """What to hold back: of the requests whose body has a text, the one with this number from now on, or each."""

    number: int | None
    way: Way
    text: str
    released: threading.Event = field(default_factory=threading.Event)
    held: str = ""  # its address
    count: int = 0


class SlowNetwork:
    """Passes all requests on to a server; `holding` keeps one of them back for a while."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self._hold: Hold | None = None
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._ends.set()
        self._changes = 0  # requests that change something and have no answer yet
        self._answered = threading.Condition()
        network = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # the end of an answer is the end of its connection

            def do_GET(self) -> None:
                network.pass_on(self)

            def do_POST(self) -> None:
                with network.counted():
                    network.pass_on(self)

            def log_message(self, *_: object) -> None:
                pass

        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._proxy.daemon_threads = True
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._proxy.server_port}"

    def close(self) -> None:
        """Take no more requests, and wait for answers."""
        self._proxy.shutdown()
        self._proxy.server_close()
        self.settle()

    def settle(self) -> None:
        """Wait until the requests that change something are answered."""
        with self._answered:
            assert self._answered.wait_for(lambda: not self._changes, timeout=HANG)

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._answered:
            self._changes += 1
        try:
            yield
        finally:
            with self._answered:
                self._changes -= 1
                self._answered.notify_all()

    @contextmanager
    def holding(self, number: int | None, way: Way, text: str = "") -> Iterator[Hold]:
        hold = Hold(number, way, text)
        self._hold = hold
        try:
            yield hold
        finally:
            self._hold = None
            hold.released.set()

    @contextmanager
    def ending_late(self) -> Iterator[None]:
        """Keep back the message that a stream of answers ends, which Gradio sends after the last one."""
        self._ends.clear()
        try:
            yield
        finally:
            self._ends.set()

    def pass_on(self, request: BaseHTTPRequestHandler) -> None:
        """Send a request to the server, and its answer back as it comes."""
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        hold = self._held(request, body)
        if hold and hold.way == "there":
            hold.released.wait(HANG)
        connection = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=120)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        headers |= {"Host": f"127.0.0.1:{self.server_port}"}
        if "Origin" in headers:
            headers["Origin"] = f"http://127.0.0.1:{self.server_port}"
        with suppress(OSError, http.client.HTTPException):  # either side has gone
            connection.request(request.command, request.path, body or None, headers)
            answer = connection.getresponse()
            if hold and hold.way == "back":
                hold.released.wait(HANG)
            request.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP:
                    request.send_header(name, value)
            request.end_headers()
            while part := answer.read1(65536):
                if b"close_stream" in part:
                    self._ends.wait(600)
                request.wfile.write(part)
                request.wfile.flush()
        connection.close()
        request.close_connection = True

    def _held(self, request: BaseHTTPRequestHandler, body: bytes) -> Hold | None:
        with self._lock:
            hold = self._hold
            if hold is None or request.command != "POST" or hold.released.is_set():
                return None
            if hold.text.encode() not in body:
                return None
            hold.count += 1
            if hold.number not in (hold.count, None):
                return None
            hold.held = request.path
            return hold
