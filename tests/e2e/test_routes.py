"""Every route that the page has, as its own list names them: without the password none answers, and none tells secrets.

What other tests send to routes that they know by name says nothing of one that a new version of a library brings along.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import CHECKOUT, Server, make_home, serving, wait
from trainer import runs
from trainer.runs import Run

SECRET = "hf_SECRETSECRETSECRET"
LIST = """
import json
from ui import page

def listed(routes):
    for route in routes:
        inside = getattr(route, "original_router", None) or getattr(route, "app", None)
        if hasattr(inside, "routes"):
            yield from listed(inside.routes)
        elif hasattr(route, "path"):
            yield from ([method, route.path] for method in getattr(route, "methods", None) or ["GET"])

print(json.dumps(list(listed(page.make_app().routes))))
"""


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """(method, path with names in braces) of each route."""
    home = make_home(tmp_path_factory.mktemp("home"))
    done = subprocess.run(
        [sys.executable, "-c", LIST], cwd=CHECKOUT, env={**os.environ, "LIMNER_HOME": str(home)}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    listed = [(method, path) for method, path in json.loads(done.stdout.splitlines()[-1])]
    paths = {path for _, path in listed}
    assert {"/", "/media/dataset/{name}/{image}", "/gradio_api/upload", "/gradio_api/file={path_or_url:path}"} <= paths
    assert len(listed) > 60
    return listed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Run]]:
    """A server that was given a token of the hub, and a run of three steps on it."""
    with serving(make_home(tmp_path_factory.mktemp("home")), HF_TOKEN=SECRET) as made:
        settings = {"name": "rin", "training.steps": 3, "preview.every": 3, "preview.steps": 1, "checkpoint.every": 3}
        body = {"data": ["example-character", "character", settings]}
        joined = httpx.post(f"{made.url}/gradio_api/call/start_training", json=body, timeout=60).json()
        httpx.get(f"{made.url}/gradio_api/call/start_training/{joined['event_id']}", timeout=60)
        (folder,) = [path.parent for path in (made.home / "outputs").glob("*/config.toml")]
        wait(lambda: runs.look(Run(folder)).status == "finished", seconds=120)
        (made.home / "outputs" / ".env").write_text(SECRET)
        yield made, Run(folder)


def told(web: httpx.Client, method: str, path: str) -> tuple[int, bytes]:
    """Status and body of an answer; of one that does not end, or ends in the middle, what comes in two seconds."""
    body = b""
    with suppress(httpx.ReadTimeout, httpx.RemoteProtocolError), web.stream(method, path) as answer:
        for part in answer.iter_raw():
            body += part
    return answer.status_code, body


def test_no_route_tells_a_secret_or_where_things_lie(
    routes: list[tuple[str, str]], trained: tuple[Server, Run]
) -> None:
    server, run = trained
    preview = next((run.folder / "previews").iterdir()).name
    names = {
        "name": ["example-character"], "image": ["01.png", "01.txt"], "run_id": [run.id], "preview": [preview],
        "step": ["3"], "file": ["rin.safetensors", "config.toml", "worker.log", "events.jsonl"],
        "path_or_url:path": [f"{server.home}/outputs/.env", f"{run.folder}/worker.log", "/proc/self/environ"],
        "path:path": ["../outputs/.env", "/proc/self/environ"],
    }  # fmt: skip
    private = (SECRET, "Traceback", "root:x:", str(server.home), str(CHECKOUT), str(Path.home()) + "/")
    statuses, leaks = [], []
    with httpx.Client(base_url=server.url, timeout=2) as web:
        for path in sorted({path for method, path in routes if method == "GET"}):
            addresses = [path]
            for hole in re.findall(r"{(.*?)}", path):
                addresses = [
                    address.replace(f"{{{hole}}}", name) for address in addresses for name in names.get(hole, ["x"])
                ]
            for address in addresses:
                status, body = told(web, "GET", address)
                statuses.append(status)
                body = body.replace(
                    address.partition("=")[2].encode(), b""
                )  # a path that was asked for may be repeated
                leaks += [(address, word) for word in private if word.encode() in body]
    assert leaks == []
    assert statuses.count(200) > 20


def test_without_the_password_no_route_answers(routes: list[tuple[str, str]], tmp_path: Path) -> None:
    with (
        serving(make_home(tmp_path), LIMNER_PASSWORD="correct horse") as server,
        httpx.Client(base_url=server.url, timeout=30) as stranger,
    ):
        for method, path in routes:
            addresses = re.sub(r"{.*?}", "x", path)
            if addresses not in ("/", "/login", "/logout"):
                assert stranger.request(method, addresses).status_code == 401, (method, addresses)
        assert stranger.get("/").headers["location"] == "/login"
        assert stranger.get("/logout").headers["location"] == "/login"
        assert stranger.post("/login", data={"password": "x"}).status_code == 403
