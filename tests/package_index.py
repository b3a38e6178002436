"""A package index with tiny packages, whose downloads may break off; or a proxy that lets nobody out."""

import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


@dataclass
class Index:
    """Pages of links by their path, such as `/simple/torch/`, and files by their name."""

    port: int = 0
    pages: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # paths, with the range of bytes if there was one
    broken_at: int | None = None  # each answer with a file ends after as many bytes
    is_proxy: bool = False  # answers as a proxy that asks for a password

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def offer(self, folder: str, name: str, version: str, files: dict[str, bytes]) -> str:
        """Offer a package in a folder of the index; return its hash."""
        file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        self.files[file] = wheel(name, version, files)
        self.pages.setdefault(f"{folder}/{name}/", []).append(file)
        return hashlib.sha256(self.files[file]).hexdigest()


def wheel(name: str, version: str, files: dict[str, bytes]) -> bytes:
    """Return a wheel with the given files."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tag = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": tag.encode(), **files}
    rows = [f"{path},sha256={_digest(content)},{len(content)}" for path, content in files.items()]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]))
    return packed.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@contextmanager
def serving() -> Iterator[Index]:
    """Serve an index until the end of the `with`."""
    index = Index()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            index.asked.append(f"{self.path} {wanted}".strip())
            if index.is_proxy:
                self.answer(407, b"", {"Proxy-Authenticate": "Basic"})
            elif self.path in index.pages:
                links = "".join(f'<a href="/files/{name}">{name}</a>' for name in index.pages[self.path])
                self.answer(200, links.encode(), {"Content-Type": "text/html"})
            elif (name := unquote(self.path).rpartition("/")[2]) in index.files:
                self.send_file(index.files[name], wanted)
            else:
                self.answer(404, b"", {})

        def send_file(self, content: bytes, wanted: str) -> None:
            begin = int(wanted.removeprefix("bytes=").partition("-")[0] or 0)
            rest = content[begin:]
            headers = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if wanted else {}
            sent = rest[: index.broken_at]
            self.answer(206 if wanted else 200, sent, {**headers, "ETag": '"1"', "Content-Length": str(len(rest))})
            self.close_connection = len(sent) < len(rest)

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...  # noqa: ANN401 - as in the base class

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        index.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield index
        server.shutdown()
