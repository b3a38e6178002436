"""A server on the loopback with the chat API of OpenAI, which also refuses, dawdles and answers garbage."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests import loopback


@dataclass
class FakeCaptionServer:
    """The server's address, what it answers, and what was asked: path, headers and JSON of each request."""

    url: str
    status: int = 200
    body: bytes = b""  # b"" = a caption that counts the requests
    location: str = ""  # of a redirect
    seconds_per_byte: float = 0.0
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[FakeCaptionServer]:
    fake = FakeCaptionServer("")

    class Handler(loopback.Handler):
        protocol_version = "HTTP/1.0"  # an answer ends with its connection

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            fake.requests.append((self.path, dict(self.headers), json.loads(content)))
            answer = {"choices": [{"message": {"role": "assistant", "content": f" caption\n{len(fake.requests)} "}}]}
            body = fake.body or json.dumps(answer).encode()
            self.send_response(fake.status)
            if fake.location:
                self.send_header("Location", fake.location)
            self.end_headers()
            length = 1 if fake.seconds_per_byte else len(body)
            with suppress(OSError):  # the client has left
                for begin in range(0, len(body), length):
                    self.wfile.write(body[begin : begin + length])
                    self.wfile.flush()
                    time.sleep(fake.seconds_per_byte)

    with loopback.serving(Handler) as fake.url:
        yield fake
