"""A package index with tiny packages, whose downloads may break off; or a proxy that lets nobody out."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote


@dataclass
class Index:
    """Pages of links by their path, such as `/simple/torch/`, and files by their name."""

    url: str = ""
    pages: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # paths, with the range of bytes if there was one
    broken_at: int | None = None  # each answer with a file ends after as many bytes
    is_proxy: bool = False  # answers as a proxy that asks for a password

    def offer(self, folder: str, name: str, version: str, files: dict[str, bytes]) -> str:
        """Offer a package in a folder of the index; return its hash."""
        file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        self.files[file] = wheel(name, version, files)
        self.pages.setdefault(f"{folder}/{name}/", []).append(file)
        return hashlib.sha256(self.files[file]).hexdigest()


def wheel(name: str, version: str, files: dict[str, bytes]) -> bytes:
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
    from tests import loopback  # the programs under test have this module alone

    index = Index()

    class Handler(loopback.Handler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            index.requests.append(f"{self.path} {wanted}".strip())
            if index.is_proxy:
                self.reply(407, {"Proxy-Authenticate": "Basic"})
            elif self.path in index.pages:
                links = "".join(f'<a href="/files/{name}">{name}</a>' for name in index.pages[self.path])
                self.reply(200, {"Content-Type": "text/html"}, links.encode())
            elif (name := unquote(self.path).rpartition("/")[2]) in index.files:
                self.send_file(index.files[name], wanted)
            else:
                self.reply(404, {})

        def send_file(self, content: bytes, wanted: str) -> None:
            begin = int(wanted.removeprefix("bytes=").partition("-")[0] or 0)
            rest = content[begin:]
            headers = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if wanted else {}
            sent = rest[: index.broken_at]
            self.reply(206 if wanted else 200, {**headers, "ETag": '"1"', "Content-Length": str(len(rest))}, sent)
            self.close_connection = len(sent) < len(rest)

    with loopback.serving(Handler) as index.url:
        yield index
