"""The real server in a process of its own on a home folder of its own, and a real browser to look at it.

After each test: the pages had no script error and asked nobody but our server, and no process of the server looked up
or connected to any host but this machine.
"""

import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.conftest import HANG, free_port, unmeasured, wait

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, Response, Route
else:  # its package is not everywhere, and takes a while to import
    Browser = BrowserContext = Locator = Page = Request = Response = Route = Any

Visit = Callable[..., Page]

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = CHECKOUT / "datasets"
OWN_HOSTS = {"127.0.0.1", "localhost", "::1", "None"}
_BROWSER: pytest.StashKey[Any] = pytest.StashKey()
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-default-apps",
    "--no-pings",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass
class Server:
    """`python app.py` on a home folder."""

    home: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def lookups(self) -> Path:
        return self.home / "lookups.txt"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> Path:
        """What it prints; a pipe that nobody reads would fill, and it would wait."""
        return self.home / "said.txt"

    def start(self, *arguments: str, token: bool = False, **environment: str) -> "Server":
        own = {"LIMNER_HOME": str(self.home), "LIMNER_LOOKUPS": str(self.lookups)}
        own["PYTHONPATH"] = str(Path(__file__).parent / "lookups")
        variables = unmeasured() | own | environment
        options = ["--port", str(self.port), *(() if token else ("--no-token",)), *arguments]
        command = [sys.executable, "app.py", *options]
        with self.said.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=CHECKOUT, env=variables, stdout=output, stderr=subprocess.STDOUT, text=True
            )
        wait(self.answers)
        return self

    def answers(self) -> bool:
        assert self.process.poll() is None, self.said.read_text()
        if not (address := re.search(r"running at \S+?:(\d+)", self.said.read_text())):
            return False
        self.port = int(address[1])  # another program may have taken the one that was free
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except OSError as error:
            return isinstance(error, urllib.error.HTTPError)
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> str:
        """End it kindly; returns all that it said."""
        if self.process is None or self.process.poll() is not None:
            return ""
        self.process.terminate()
        try:
            self.process.wait(timeout=HANG)
            return self.said.read_text()
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def end_workers(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if "trainer" in command and any(part.startswith(str(self.home)) for part in command):
                process.kill()


def copy_project(name: str, folder: Path, *left_out: str) -> Path:
    return shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns(".*", *left_out))


def make_home(folder: Path) -> Path:
    for name in ("example-character", "example-style"):
        copy_project(name, folder / "datasets" / name)
    (folder / "outputs").mkdir()
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of a test's own."""
    with serving(make_home(tmp_path)) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests of a module, which leave it as they found it."""
    with serving(make_home(tmp_path_factory.mktemp("home"))) as made:
        yield made


@contextmanager
def serving(home: Path, **environment: str) -> Iterator[Server]:
    """A server on a home, ended afterwards with its workers; it looked up no other machine."""
    made = Server(home)
    try:
        yield made.start(**environment)
    finally:
        try:
            made.stop()
        finally:
            made.end_workers()
    hosts = set(made.lookups.read_text().split("\n")) - {""} if made.lookups.exists() else set()
    assert "127.0.0.1" in hosts  # its own address: somebody does watch
    assert hosts <= OWN_HOSTS


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Browser:
    """The only browser of this process, also for tests elsewhere that import this fixture."""
    if _BROWSER not in request.config.stash:
        program = os.environ.get("LIMNER_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            program = None
        if not program:
            words = (
                "no browser: apt-get install chromium, pip install playwright; or set LIMNER_CHROMIUM to its program"
            )
            if os.environ.get("CI"):
                pytest.fail(words)
            pytest.skip(words)
        playwright = sync_playwright().start()
        request.config.add_cleanup(playwright.stop)
        request.config.stash[_BROWSER] = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
    return request.config.stash[_BROWSER]


# What the content security policy refuses, told in each page.
REFUSALS = """document.addEventListener("securitypolicyviolation", (event) => window.limnerRefused(
  `${event.violatedDirective}: ${event.blockedURI} at ${event.sourceFile}:${event.lineNumber} ${event.sample}`));"""


@pytest.fixture
def refused() -> list[str]:
    """Refusals of the pages' policy; a test that puts a script into a page empties the list."""
    return []


@pytest.fixture
def visit(browser: Browser, refused: list[str]) -> Iterator[Visit]:
    """Open pages of a server; what goes wrong in them fails the test at its end."""
    contexts, errors, foreign = [], [], []

    def open_page(server: Server, *, projects: bool = True, **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(HANG * 1000)
        contexts.append(context)
        context.expose_function("limnerRefused", lambda text: refused.append(text))
        context.add_init_script(REFUSALS)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))

        def note_error(answer: Response) -> None:
            if answer.status >= 500:
                errors.append(answer.url)

        def note_request(request: Request) -> None:
            if not request.url.startswith((server.url, "data:", "blob:")):
                foreign.append(request.url)

        page.on("response", note_error)  # until it is open: later some tests ask for what is refused
        page.on("request", note_request)
        page.goto(server.url)
        page.get_by_role("tab", name="Images").wait_for()
        if projects:
            page.locator("#captions .captions:not([data-project=''])").wait_for(state="attached")
        page.remove_listener("response", note_error)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert (errors, foreign, refused) == ([], [], [])
