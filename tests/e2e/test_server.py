"""`python app.py` as a process: how it starts, what it refuses, how it ends."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import httpx

from tests.conftest import HANG, small_disk
from tests.e2e.conftest import CHECKOUT, Browser, Server, make_home
from tests.e2e.test_network import guesses
from trainer import storage
from ui import launch


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, "LIMNER_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=HANG,
    )


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
        made.start("--listen", "--host-name", "limner.example", "--trusted-proxy", "127.0.0.1")
        output = made.said.read_text(encoding="utf-8")
        assert printed(r"running at (\S+)", output) == f"http://limner.example:{made.port}", "which can be opened"
        assert stat.S_IMODE((made.home / "outputs" / ".password").stat().st_mode) == 0o600
        assert not left.exists()
        assert left.parent.parent.stat().st_mode & 0o777 == 0o700
        for path in ("config", "gradio_api/info", "media/dataset/example-character/01.png", "gradio_api/heartbeat/x"):
            assert httpx.get(f"{made.url}/{path}").status_code == 401
        page.goto(made.url)
        for password in ("wrong", printed(r"Password for the page: (\S+)", output)):
            page.get_by_label("Password").fill(password)
            page.get_by_role("button", name="Log in").click()
            if password == "wrong":
                page.get_by_role("alert").get_by_text("Wrong password.").wait_for()
        page.get_by_label("Caption of 01.png").fill("behind a password")
        page.get_by_text("All captions are saved.").wait_for()
        page.get_by_role("link", name="Log out").wait_for()
        assert guesses(made) == ([403] * 8, True), "each network of the trusted proxy has attempts of its own"
    finally:
        page.close()
        made.stop()
    caption = made.home / "datasets" / "example-character" / "01.txt"
    assert caption.read_text() == "behind a password\n"


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
            assert httpx.get(f"{made.url}/media/dataset/example-character/01.png").status_code == 200
            sent = httpx.post(f"{made.url}/gradio_api/upload", files={"files": ("x.png", bytes(1000))})
            assert (sent.status_code, "disk is almost full" in sent.text) == (413, True)
        finally:
            output = made.stop()
        assert re.search(r"Only [1-5] MB of disk space is left\. Adding images needs at least 2048 MB\.\n", output)


def test_wrong_usage_and_a_folder_that_cannot_be_written_to_are_said(tmp_path: Path) -> None:
    for arguments in (["--nonsense"], ["--host", "256.1.1.1"]):
        done = run(tmp_path, *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "outputs").touch()
    for home in (tmp_path / "half", Path("/proc/1")):
        done = run(home)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("The folders datasets and outputs cannot be written to. Check their permissions")
        assert done.stderr.count("\n") == 1


def test_a_home_with_accounts_of_an_earlier_version_opens_and_says_so(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    (home / "people.toml").write_text('[anna]\nsalt = "00"\nhash = "00"\n', encoding="utf-8")
    (home / "people" / "anna" / "datasets").mkdir(parents=True)
    made = Server(home)
    try:
        made.start()
        assert httpx.get(f"{made.url}/media/dataset/example-character/01.png").status_code == 200
    finally:
        output = made.stop()
    assert output.count("people.toml") == 1
    assert "Limner no longer reads the accounts in people.toml: see docs/several-people.md.\n" in output
    assert (home / "people" / "anna" / "datasets").is_dir()


def test_the_printed_address_opens_the_page_and_no_other_does(tmp_path: Path, browser: Browser) -> None:
    """One server for a home; that of another home has another port."""
    made, other = (Server(make_home(tmp_path / name)) for name in ("home", "other"))
    context = browser.new_context()
    try:
        made.start(token=True)
        second = run(made.home)
        assert second.returncode == 2
        assert second.stderr.startswith(f"Limner is already running for this folder, as process {made.pid}. Use the p")
        other.port = made.port
        other.start()
        assert httpx.get(made.url).status_code == 401
        address = printed(r"Limner is running at (\S+)", made.said.read_text(encoding="utf-8"))
        page = context.new_page()
        for _ in range(2):  # also where the cookie is set already
            page.goto(address)
            page.get_by_role("tab", name="Images").wait_for()
            assert "token" not in page.url
        page.reload()
        page.get_by_role("tab", name="Download").click()
        for name, mode in ((".", 0o700), (".token", 0o600)):
            assert stat.S_IMODE((made.home / "outputs" / name).stat().st_mode) == mode
        assert stat.S_IMODE((made.home / "datasets").stat().st_mode) == 0o700
    finally:
        context.close()
        made.stop()
        output = other.stop()
    assert made.port < other.port <= made.port + launch.PORTS
    assert f"Port {made.port} is taken; using {other.port}.\n" in output
    assert "Traceback" not in output
    assert other.process.returncode == 0
