"""A Hugging Face Hub on this machine: repositories in memory, answered as the real one answers the hub's own client."""

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests import loopback

COMMIT = "c" * 40
PIECE = 2 * 2**20


@dataclass
class FakeHub:
    """The hub's address, its repositories as {name: {path: bytes}}, and what was asked of it."""

    url: str
    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    corrupts: bool = False  # the last byte of large files
    seconds_per_piece: float = 0.0  # of 2 MiB; slows downloads down
    sent: list[tuple[str, int]] = field(default_factory=list)  # files that were sent, and from which byte
    token: str = ""  # that may write
    private: set[str] = field(default_factory=set)


@contextmanager
def serving(repositories: dict[str, dict[str, bytes]]) -> Iterator[FakeHub]:
    fake = FakeHub("", repositories)

    class Handler(_Handler):
        hub = fake

    with loopback.serving(Handler) as fake.url:
        yield fake


class _Handler(loopback.Handler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        """Take what the hub's client uploads: a new repository, what is to come, and a commit with its files."""
        hub = self.hub
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            self._tell({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(401, "")
        elif parts == ["api", "repos", "create"]:
            request = json.loads(data)
            name = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
            hub.repositories.setdefault(name, {})
            if request.get("private") or request.get("visibility") == "private":
                hub.private.add(name)
            self._tell({"url": f"{hub.url}/{name}"})
        elif parts[4:5] == ["preupload"]:
            kind = {"uploadMode": "regular", "shouldIgnore": False}
            self._tell({"files": [{"path": file["path"], **kind} for file in json.loads(data)["files"]]})
        else:
            name = "/".join(parts[2:4])
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    hub.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._tell({"commitUrl": f"{hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "pullRequestUrl": None})

    def _tell(self, answer: dict[str, object]) -> None:
        self.reply(200, {}, json.dumps(answer).encode())

    def _answer(self, *, body: bool) -> None:
        hub = self.hub
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            files = hub.repositories.get(name)
            siblings = [{"rfilename": path, "size": len(data)} for path, data in (files or {}).items()]
            listing = json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []})
            self._send(name, files is not None, listing.encode(), body=body)
        else:
            name, path = "/".join(parts[:2]), "/".join(parts[4:])
            if name in hub.gated:
                self._refuse(403, "GatedRepo")
                return
            data = hub.repositories.get(name, {}).get(path)
            self._send(name, data is not None, data or b"", path, body=body)

    def _refuse(self, code: int, reason: str) -> None:
        self.reply(code, {"X-Error-Code": reason})

    def _send(self, name: str, there: bool, data: bytes, path: str = "", *, body: bool) -> None:
        if not there:
            self._refuse(404, "EntryNotFound" if name in self.hub.repositories else "RepoNotFound")
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(206 if start else 200, headers | {"Content-Length": str(len(data) - start)})
        if not body:
            return
        if path:
            self.hub.sent.append((path, start))
        if self.hub.corrupts and len(data) > PIECE:
            data = data[:-1] + b"?"
        for begin in range(start, len(data), PIECE):
            self.wfile.write(data[begin : begin + PIECE])
            time.sleep(self.hub.seconds_per_piece)


def folder_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
