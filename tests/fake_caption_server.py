"""A server on the loopback with the chat API of OpenAI, which also refuses, dawdles and answers garbage."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


@dataclass
class FakeCaptionServer:
    """The server's address, what it answers, and what was asked: path, headers and JSON of each request."""

    url: str
    status: int = 200
    body: bytes = b""  # b"" = a caption that counts the requests
    location: str = ""  # of a redirect
    seconds_per_byte: float = 0.0
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[FakeCaptionServer]:
    """Serve on a free port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        fake = FakeCaptionServer(f"http://127.0.0.1:{server.server_port}")
        _Handler.servers[server.server_port] = fake
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        try:
            yield fake
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    servers: ClassVar[dict[int, FakeCaptionServer]] = {}

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def do_POST(self) -> None:
        fake = self.servers[self.server.server_address[1]]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake.asked.append((self.path, dict(self.headers), asked))
        answer = {"choices": [{"message": {"role": "assistant", "content": f" caption\n{len(fake.asked)} "}}]}
        body = fake.body or json.dumps(answer).encode()
        self.send_response(fake.status)
        if fake.location:
            self.send_header("Location", fake.location)
        self.end_headers()
        try:
            for byte in [body] if not fake.seconds_per_byte else [body[n : n + 1] for n in range(len(body))]:
                self.wfile.write(byte)
                self.wfile.flush()
                time.sleep(fake.seconds_per_byte)
        except OSError:  # the client has left
            pass
