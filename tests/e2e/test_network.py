"""What strangers, other web sites and odd clients may send to the running server, and what must come of it."""

import getpass
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from safetensors import safe_open

from tests.conftest import HANG, wait
from tests.e2e.conftest import CHECKOUT, Server, make_home, serving
from tests.unit.ui.test_page import in_loop
from trainer import runs
from trainer.runs import events
from ui.page import make_app

SECRET = "hf_SECRETSECRETSECRET"
# What no answer may show: where things lie, or how the program is built.
INSIDE = ("Traceback", "site-packages", "/root:", "root:x:", SECRET)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests here: none of them may harm it."""
    with serving(make_home(tmp_path_factory.mktemp("home")), HF_TOKEN=SECRET, OMP_NUM_THREADS="1") as made:
        yield made
        assert httpx.get(made.url).status_code == 200  # after all that


@pytest.fixture
def web(shared: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared.url, timeout=HANG) as client:
        yield client


@dataclass(frozen=True)
class Page:
    """The page as a program sees it: its components by their ids, and what calls which function."""

    web: httpx.Client
    config: dict[str, Any]

    @property
    def functions(self) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.config["dependencies"]
        return result

    def number(self, name: str) -> int:
        return next(int(item["id"]) for item in self.config["components"] if item["props"].get("elem_id") == name)

    def called_by(self, name: str, event: str) -> dict[str, Any]:
        """The function of the server that an event of a component calls."""
        wanted = [self.number(name), event]
        called = (item for item in self.functions if wanted in [list(target) for target in item["targets"]])
        return next(item for item in called if item["backend_fn"])

    def opened(self) -> dict[str, Any]:
        """What is called when a page was opened; what can be chosen in it is known from then on."""
        return next(item for item in self.functions if any(target[1] == "load" for target in item["targets"]))

    def without_states(self, function: dict[str, Any], values: list[Any]) -> list[Any]:
        """Values as they are sent: what the server itself keeps is left out."""
        states = {item["id"] for item in self.config["components"] if item["type"] == "state"}
        return [None if number in states else item for number, item in zip(function["inputs"], values, strict=True)]

    def values(self, function: dict[str, Any], **changed: object) -> list[Any]:
        """What the page would send: the values that it starts with, some of them changed."""
        parts = {item["id"]: item["props"] for item in self.config["components"]}
        result = []
        for number in function["inputs"]:
            props = parts[number]
            result.append(changed.get(str(props.get("elem_id")).replace("-", "_"), props.get("value")))
        return result

    def call(
        self, function: dict[str, Any], data: list[Any], session: str = "s", event: object = None, seconds: float = 60
    ) -> str:
        """Call a function as the page does; returns all that the server says of it."""
        body = {"fn_index": function["id"], "data": data, "session_hash": session, "event_data": event}
        if not function["queue"]:
            return self.web.post("/gradio_api/run/predict", json=body).text
        joined = self.web.post("/gradio_api/queue/join", json=body)
        output = joined.text
        if joined.status_code == 200:
            end = time.monotonic() + seconds
            with self.web.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
                for line in answer.iter_lines():
                    output += line
                    assert time.monotonic() < end, (function, output[-2000:])  # it beats like a heart, for ever
                    if '"process_completed"' in line or '"close_stream"' in line:
                        break
        return output


@pytest.fixture
def page(web: httpx.Client) -> Page:
    return Page(web, web.get("/config").json())


# Who may ask ----------------------------------------------------------------------------------------------------


def test_it_listens_on_this_machine_alone(shared: Server) -> None:
    process = psutil.Process(shared.pid)
    listening = [item.laddr.ip for item in process.net_connections(kind="inet") if item.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


def test_every_answer_keeps_to_itself_and_none_goes_to_a_foreign_name(web: httpx.Client) -> None:
    """A name may have been bound to our address."""
    foreign = {"Host": "127.0.0.1.evil.example"}
    for path in ("/", "/config", "/media/dataset/example-character/01.png", "/nowhere", "/gradio_api/file=/etc/passwd"):
        assert web.get(path, headers=foreign).status_code == 403
        headers = web.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "server" not in headers
    assert "private" in web.get("/media/dataset/example-character/01.png").headers["cache-control"]
    for path in ("/gradio_api/run/predict", "/gradio_api/queue/join"):
        for other in (foreign, {"Origin": "null"}):
            assert web.post(path, headers=other, json={}).status_code == 403


# What may be read -----------------------------------------------------------------------------------------------


SCRIPT = "<html><script>alert(1)</script></html>"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.html", "text/html"),
        ("x.svg", "image/svg+xml"),
        ("x.js", "text/javascript"),
        ("x.xml", "text/xml"),
        ("x.png", "text/html"),
        ("../../../evil.html", "text/html"),
        ("x.pdf", "application/pdf"),
        ("x", "text/html"),
    ],
)
def test_what_was_uploaded_is_never_shown_as_a_page(shared: Server, web: httpx.Client, name: str, kind: str) -> None:
    answer = web.post("/gradio_api/upload", files={"files": (name, SCRIPT, kind)})
    assert str(shared.home) not in answer.text
    for path in answer.json() if answer.status_code == 200 else ():
        assert (shared.home / path).resolve().is_relative_to(shared.home / "outputs" / ".tmp")
        served = web.get(f"/gradio_api/file={path}")
        if served.status_code == 200:
            inline = "attachment" not in served.headers.get("content-disposition", "")
            assert not inline or served.headers["content-type"].startswith(("image/png", "text/plain"))
            assert served.headers["x-content-type-options"] == "nosniff"
    evil = shared.home.rglob("evil.html")
    assert all(path.is_relative_to(shared.home / "outputs" / ".tmp") for path in evil)
    assert (shared.home / "outputs" / ".tmp").stat().st_mode & 0o777 == 0o700


def test_nonsense_for_any_function_is_answered_in_words(shared: Server, page: Page) -> None:
    """Each function, called past the form with values that no form gives: no traceback, no path, no harm."""

    def files() -> list[str]:  # a new project of any name may come of it: an empty folder
        result = (path for path in (shared.home / "datasets").rglob("*") if path.is_file())
        return sorted(path.name for path in result if not any(part.startswith(".") for part in path.parts[-3:]))

    before = files()
    for function in page.functions:
        if function["inputs"] and not function.get("js_only"):
            event = {"run": "../../datasets", "file": "../x", "name": "../01.png", "page": 1}
            output = page.call(function, [{"a": [1]}] * len(function["inputs"]), f"n{time.monotonic_ns()}", event)
            leaks = [word for word in (*INSIDE, str(shared.home), str(CHECKOUT)) if word in output]
            assert not leaks, (function, output)
    assert files() == before
    assert not runs_of(shared)


CALLS = [
    ("add_images", ["example-character", ["/etc/passwd"]]),
    ("add_images", ["../outputs", []]),
    ("add_images", ["example-character", [{"path": "http://127.0.0.1:1/"}]]),
    ("list_adapters", [1, 2, 3]),
    ("remove_image", ["example-character", "../../outputs/.page.lock"]),
    ("status", [""]),
    ("start_training", ["example-character", "../../etc/passwd", {}]),
    ("start_training", ["/etc", "character", {}]),
    ("start_training", ["example-character", "character", {"training.steps": 1e999, "name": "a"}]),
    ("start_training", ["example-character", "character", {"name": "../a"}]),
    ("delete_run", ["../datasets"]),
    ("rename_run", ["../x", "y"]),
    ("make_picture", ["x", "kept:../../etc/passwd", 1, {}]),
    ("make_picture", ["x", "", 1, {"steps": 10**9}]),
    ("make_picture", ["x", "", "nan", {"size": "9999999 x 9"}]),
]


@pytest.mark.parametrize(("name", "data"), CALLS, ids=lambda item: repr(item)[:40])
def test_wrong_calls_of_the_endpoints_are_refused_in_words(
    shared: Server, web: httpx.Client, name: str, data: list[Any]
) -> None:
    before = sorted((shared.home / "datasets").rglob("*"))
    joined = web.post(f"/gradio_api/call/{name}", content=json.dumps({"data": data}))
    output = joined.text
    if joined.status_code == 200:
        output += web.get(f"/gradio_api/call/{name}/{joined.json()['event_id']}").text
        assert "event: error" in output
    assert not [word for word in (*INSIDE, str(shared.home), str(CHECKOUT)) if word in output], output
    assert sorted((shared.home / "datasets").rglob("*")) == before
    assert not runs_of(shared)


def raw_answer(web: httpx.Client, endpoint: str, body: Any) -> str:  # noqa: ANN401 - JSON, or what is none
    """What `curl` would show of a call of the API."""
    content = body if isinstance(body, str) else json.dumps(body)
    submitted = web.post(f"/gradio_api/call/{endpoint}", content=content, headers={"Content-Type": "application/json"})
    if submitted.status_code != 200:
        assert submitted.status_code == 400, submitted.text
        return str(submitted.json()["error"])
    return web.get(f"/gradio_api/call/{endpoint.removeprefix('v2/')}/{submitted.json()['event_id']}").text


def test_raw_calls_may_leave_out_what_has_a_default_and_wrong_ones_get_a_sentence(web: httpx.Client) -> None:
    assert 'data: ["raw"]' in raw_answer(web, "create_project", {"data": ["raw"]})
    assert 'data: ["named"]' in raw_answer(web, "v2/create_project", {"name": "named"})
    for endpoint, body in (("start_training", {"data": ["raw"]}), ("v2/start_training", {"project": "raw"})):
        assert "There are no images in this dataset." in raw_answer(web, endpoint, body)
    for endpoint, body, sentence in (
        ("create_project", {"data": []}, "missing a required argument: 'name'."),
        ("create_project", {"data": ["a", "b"]}, "too many positional arguments."),
        ("v2/create_project", {"title": "a", "name": "b"}, "got an unexpected keyword argument 'title'."),
        ("create_project", "nonsense", "Expecting value: line 1 column 1 (char 0)."),
        ("create_project", {"data": 3}, "the body is not a JSON object with values."),
    ):
        assert raw_answer(web, endpoint, body) == f"create_project: {sentence} It takes: name: str."
    assert raw_answer(web, "nothing", {"data": []}) == "The API has no endpoint 'nothing'. docs/api.md lists all."


def runs_of(server: Server) -> list[Path]:
    return [path.parent for path in (server.home / "outputs").glob("*/config.toml")]


def test_what_an_address_in_a_request_names_is_not_fetched(shared: Server, web: httpx.Client) -> None:
    """The fixture checks that no other machine was even looked up."""
    assert web.get("/gradio_api/file=https://example.com/x.png").status_code == 404
    file = {"path": "https://example.com/y.png", "meta": {"_type": "gradio.FileData"}}
    assert "event: error" in raw_answer(web, "add_images", {"data": ["example-character", [file]]})
    assert "example.com" not in shared.lookups.read_text()


# How much may be sent -------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of another process is set by prlimit")
def test_idle_connections_do_not_use_up_the_files(server: Server) -> None:
    """More connections than the server may open files, none of which ever asks for anything."""
    import resource

    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (300, 300))
    idle = []
    try:
        for _ in range(400):
            idle.append(socket.create_connection(("127.0.0.1", server.port), timeout=HANG))
        wait(server.answers)  # connections of before make room after ten seconds
    finally:
        for connection in idle:
            connection.close()
    assert server.said.stat().st_size < 10_000


def is_closed(connection: socket.socket) -> bool:
    """Send one more line of a header."""
    try:
        connection.sendall(b"X-A: b\r\n")
    except OSError:
        return True
    return False


def test_a_header_that_never_ends_is_cut_off(shared: Server) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=HANG) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        wait(lambda: is_closed(slow), every=0.5)


# One start is one run, and nothing private leaves it ------------------------------------------------------------


@pytest.fixture(scope="module")
def started(shared: Server) -> Path:
    """The folder of the run that three clicks on Start made, when it has ended."""
    with httpx.Client(base_url=shared.url, timeout=HANG) as web:
        page = Page(web, web.get("/config").json())
        start = page.called_by("start", "click")
        values = page.values(
            start,
            page_project="example-character",
            name="rin",
            train_trigger="miraxo",
            preset="character",
            form_training_steps=3,
            form_training_batch_size=1,
            form_preservation_share=0.0,
            form_preview_every=3,
            form_preview_steps=1,
            form_preview_prompts="miraxo",
        )
        data = page.without_states(start, values)
        for number in range(3):
            page.call(page.opened(), [{}], f"twice{number}")
        with ThreadPoolExecutor(3) as browser:
            output = list(browser.map(lambda number: page.call(start, data, f"twice{number}"), range(3)))
    assert len(runs_of(shared)) == 1, output[0][-2000:]
    (folder,) = runs_of(shared)
    wait(lambda: runs.look(runs.Run(folder)).status not in runs.ACTIVE)
    return folder


def test_a_start_sent_twice_is_one_run_without_secrets(shared: Server, started: Path) -> None:
    folder = started
    assert runs.look(runs.Run(folder)).status == "finished"
    assert runs.look(runs.Run(folder)).state.step == 3  # as the form said
    with safe_open(folder / "rin.safetensors", "np") as file:
        metadata = json.dumps(file.metadata())
    private = (str(shared.home), str(Path.home()) + "/", socket.gethostname(), "01.png", SECRET)
    assert not [word for word in private if word and word in metadata]
    assert getpass.getuser() in ("root", "user") or getpass.getuser() not in metadata
    for path in shared.home.rglob("*"):
        if path.is_file() and path.name not in (".env", "lookups.txt"):
            assert SECRET.encode() not in path.read_bytes(), path
    assert all(event.kind for event in events.read(folder / "events.jsonl")[0])
    assert os.stat(folder / "rin.safetensors").st_mode & 0o022 == 0


def listed(routes: list[Any]) -> Iterator[tuple[str, str]]:
    for route in routes:
        inside = getattr(route, "original_router", None) or getattr(route, "app", None)
        if hasattr(inside, "routes"):
            yield from listed(inside.routes)
        elif hasattr(route, "path"):
            yield from ((method, route.path) for method in getattr(route, "methods", None) or ["GET"])


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """(method, path with names in braces) of each route."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_HOME", str(make_home(tmp_path_factory.mktemp("home"))))
        answered = in_loop(lambda: list(listed(make_app().routes)))
    paths = {path for _, path in answered}
    assert {"/", "/media/dataset/{name}/{image}", "/gradio_api/upload", "/gradio_api/file={path_or_url:path}"} <= paths
    assert len(answered) > 60
    return answered


def answer_of(web: httpx.Client, method: str, path: str) -> tuple[int, bytes]:
    """Status and body of an answer; of one that does not end, or ends in the middle, what comes in two seconds."""
    body = b""
    with suppress(httpx.ReadTimeout, httpx.RemoteProtocolError), web.stream(method, path) as answer:
        for part in answer.iter_raw():
            body += part
    return answer.status_code, body


def test_no_route_tells_a_secret_or_where_things_lie(
    routes: list[tuple[str, str]], shared: Server, started: Path
) -> None:
    server, run = shared, runs.Run(started)
    (server.home / "outputs" / ".env").write_text(SECRET)
    (server.home / "datasets" / "example-character" / "link.png").symlink_to("/etc/passwd")
    preview = next((run.folder / "previews").iterdir()).name
    names = {
        "name": ["example-character"],
        "image": ["01.png", "01.txt", "link.png", "..%2f..%2foutputs/.env"],
        "run_id": [run.id],
        "preview": [preview],
        "step": ["3"],
        "file": ["rin.safetensors", "config.toml", "worker.log", "events.jsonl", "..%2f.env"],
        "path_or_url:path": [
            f"{server.home}/outputs/.env",
            f"{server.home}/datasets/example-character/link.png",
            f"{run.folder}/worker.log",
            "/proc/self/environ",
            "//etc/passwd",
            "%2fetc%2fpasswd",
            "../../../etc/passwd",
            "file:///etc/passwd",
            "http://169.254.169.254/latest/meta-data",
        ],
        "path:path": ["../outputs/.env", "%2e%2e/%2e%2e/outputs/.env", "/proc/self/environ"],
    }
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
                status, body = answer_of(web, "GET", address)
                statuses.append(status)
                body = body.replace(address.partition("=")[2].encode(), b"")  # it may be repeated
                leaks += [(address, word) for word in private if word.encode() in body]
    assert leaks == []
    assert statuses.count(200) > 20


def guesses(server: Server) -> tuple[list[int], bool]:
    """Guess passwords as if through a proxy from other networks; return the answers, and whether that is in the log."""
    with httpx.Client(base_url=server.url, timeout=HANG) as stranger:
        sources = [{"X-Forwarded-For": f"10.{guess}.0.1"} for guess in range(8)]
        answers = [stranger.post("/login", headers=source, data={"password": "x"}) for source in sources]
    log = (server.home / "outputs" / ".audit.log").read_text(encoding="utf-8")
    return [answer.status_code for answer in answers], "10.0.0.1" in log


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a password."""
    with serving(make_home(tmp_path_factory.mktemp("locked")), LIMNER_PASSWORD="correct horse") as made:
        yield made


def test_without_the_password_no_route_answers(routes: list[tuple[str, str]], locked: Server) -> None:
    with httpx.Client(base_url=locked.url, timeout=HANG) as stranger:
        for method, path in routes:
            addresses = re.sub(r"{.*?}", "x", path)
            if addresses not in ("/", "/login", "/logout"):
                assert stranger.request(method, addresses).status_code == 401, (method, addresses)
        assert stranger.get("/").headers["location"] == "/login"
        assert stranger.get("/logout").headers["location"] == "/login"


def test_only_a_trusted_proxy_is_believed(locked: Server) -> None:
    """Here none is named; one that is named is believed by the server of `test_listening_needs_a_password`."""
    assert guesses(locked) == ([403] * 5 + [429] * 3, False), "they all are of one network"


def test_pages_that_are_gone_leave_no_memory_behind(shared: Server, page: Page) -> None:
    process = psutil.Process(shared.pid)

    def memory_after(pages: list[str]) -> int:
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda name: page.call(page.opened(), [None], name), pages))
        assert all("example-character" in answer for answer in answers)
        return process.memory_info().rss

    first = memory_after([f"first {number}" for number in range(20)])
    assert memory_after([f"later {number}" for number in range(60)]) - first < 5e6
