"""`python app.py` as a process: how it starts, what it refuses, how it ends."""

import os
import re
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import pytest

from tests.conftest import small_disk
from tests.e2e.conftest import CHECKOUT, Browser, Server, make_home
from trainer import storage
from ui import launch


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "app.py", *arguments], cwd=CHECKOUT, env={**os.environ, "LIMNER_HOME": str(home)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def status(url: str, **headers: str) -> int:
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers)).status
    except urllib.error.HTTPError as error:
        return error.code


def test_one_server_for_a_home_and_the_next_port_for_another(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    second = run(server.home)
    assert second.returncode == 2
    assert second.stderr.startswith(f"Limner is already running for this folder, as process {server.pid}. Use the page")
    other = Server(make_home(tmp_path_factory.mktemp("other")), port=server.port)
    try:
        other.start()
    finally:
        output = other.stop()
    assert server.port < other.port <= server.port + launch.PORTS
    assert f"Port {server.port} is taken; using {other.port}.\n" in output
    assert "Traceback" not in output
    assert other.process.returncode == 0


def printed(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, text
    return match[1]


def test_listening_needs_a_password(tmp_path: Path, browser: Browser) -> None:
    made = Server(make_home(tmp_path))
    assert "Add --listen" in run(made.home, "--host", "0.0.0.0").stderr
    left = made.home / "outputs" / ".tmp" / "x" / "left behind.png"
    left.parent.mkdir(parents=True)
    left.touch()
    page = browser.new_page()
    try:
        made.start("--listen", "--host-name", "limner.example")
        output = made.said.read_text(encoding="utf-8")
        assert printed(r"running at (\S+)", output) == f"http://limner.example:{made.port}", "which can be opened"
        assert stat.S_IMODE((made.home / "outputs" / ".password").stat().st_mode) == 0o600
        assert not left.exists()
        assert left.parent.parent.stat().st_mode & 0o777 == 0o700
        for path in ("config", "gradio_api/info", "media/dataset/example-character/01.png", "gradio_api/heartbeat/x"):
            assert status(f"{made.url}/{path}") == 401
        page.goto(made.url)
        for password in ("wrong", printed(r"Password for the page: (\S+)", output)):
            page.get_by_label("Password").fill(password)
            page.get_by_role("button", name="Log in").click()
            if password == "wrong":
                page.get_by_role("alert").get_by_text("Wrong password.").wait_for()
        page.get_by_label("Caption of 01.png").fill("behind a password")
        page.get_by_text("All captions are saved.").wait_for()
        page.get_by_role("link", name="Log out").wait_for()
    finally:
        page.close()
        made.stop()
    caption = made.home / "datasets" / "example-character" / "01.txt"
    assert caption.read_text() == "behind a password\n"


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--host", "256.1.1.1"]])
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_said_and_what_still_works_works(tmp_path: Path) -> None:
    """A real disk of a few MB: without any room nothing starts; with a little, all but adding pictures goes on."""
    with small_disk(tmp_path / "small", "6m") as disk:
        made = Server(make_home(disk))
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(storage.free_space(disk)))
        done = run(disk)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("The folders datasets and outputs cannot be written to.")
        assert "free disk space" in done.stderr
        ballast.unlink()
        try:
            made.start()
            assert status(f"{made.url}/media/dataset/example-character/01.png") == 200
            sent = httpx.post(f"{made.url}/gradio_api/upload", files={"files": ("x.png", bytes(1000))})
            assert (sent.status_code, "disk is almost full" in sent.text) == (413, True)
        finally:
            output = made.stop()
        assert re.search(r"Only [1-5] MB of disk space is left\. Adding images needs at least 2048 MB\.\n", output)


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "outputs").touch()
    for home in (tmp_path / "half", Path("/proc/1")):
        done = run(home)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("The folders datasets and outputs cannot be written to. Check their permissions")
        assert done.stderr.count("\n") == 1


def test_the_printed_address_opens_the_page_and_no_other_does(tmp_path: Path, browser: Browser) -> None:
    made = Server(make_home(tmp_path))
    context = browser.new_context()
    try:
        made.start(token=True)
        assert httpx.get(made.url).status_code == 401
        address = printed(r"Limner is running at (\S+)", made.said.read_text(encoding="utf-8"))
        page = context.new_page()
        for _ in range(2):  # also where the cookie is set already
            page.goto(address)
            page.get_by_role("tab", name="Images").wait_for()
            assert "token" not in page.url
        page.reload()
        page.get_by_role("tab", name="Train").click()
        for name, mode in ((".", 0o700), (".token", 0o600)):
            assert stat.S_IMODE((made.home / "outputs" / name).stat().st_mode) == mode
        assert stat.S_IMODE((made.home / "datasets").stat().st_mode) == 0o700
    finally:
        context.close()
        made.stop()
