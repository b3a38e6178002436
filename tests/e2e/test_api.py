"""The page for programs: the whole way with the Gradio client, and a piece of it with nothing but HTTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import CHECKOUT, EXAMPLES, Server, make_home

pytestmark = pytest.mark.nightly

if TYPE_CHECKING:
    from gradio_client import Client

CHARACTER = EXAMPLES / "example-character"


@pytest.fixture
def client(server: Server) -> Client:
    from gradio_client import Client

    return Client(server.url, verbose=False, analytics_enabled=False)


def fetch(server: Server, address: str) -> bytes:
    with urllib.request.urlopen(server.url + address, timeout=60) as answer:
        return bytes(answer.read())


def ended(client: Client, run: str) -> dict[str, Any]:
    for _ in range(240):
        status = client.predict(run, api_name="/status")
        if status["status"] not in ("waiting", "running"):
            return dict(status)
        time.sleep(0.5)
    raise AssertionError(status)


def test_the_whole_way_by_a_program(server: Server, client: Client) -> None:
    from gradio_client import handle_file

    def call(endpoint: str, **given: Any) -> Any:  # noqa: ANN401 - JSON
        return client.predict(**given, api_name=f"/{endpoint}")

    assert call("create_project", name="mira") == "mira"
    pictures = [handle_file(CHARACTER / f"{number:02d}.{kind}") for number in range(1, 8) for kind in ("png", "txt")]
    added = call("add_images", project="mira", images=pictures)
    assert (len(added["added"]), added["refused"]) == (7, {})
    assert call("set_caption", project="mira", image="01.png", caption=" my own\nwords ") == "my own words"
    assert call("images", project="mira")[0]["caption"] == "my own words"
    assert len(call("remove_image", project="mira", image="07.png")) == 6
    settings = {"name": "mira", "trigger": "miraxo", "training.steps": 6, "preview.every": 3, "checkpoint.every": 3}
    run = call("start_training", project="mira", settings=settings)["run"]
    status = ended(client, run)
    assert (status["status"], status["step"], status["checkpoints"]) == ("finished", 6, [3, 6])
    assert fetch(server, status["previews"][0]).startswith(b"\x89PNG")
    file = fetch(server, status["adapter"])
    assert file == (server.home / "outputs" / run / "mira.safetensors").read_bytes()
    key = call("list_adapters")[0]["key"]
    pictures = [
        call("make_picture", prompt="miraxo", adapter=key, strength=strength, settings={"steps": 2, "seed": 3})
        for strength in (0.0, 1.0)
    ]
    without, with_it = (fetch(server, item["picture"]) for item in pictures)
    assert without != with_it
    assert (call("control", run=run, command="more")["run"], ended(client, run)["steps"]) == (run, 16)
    renamed = call("rename_run", run=run, name="best")
    assert (call("delete_run", run=renamed), call("restore_run")) == ([], renamed)
    assert [item["run"] for item in call("list_runs")] == [renamed]


def test_the_program_of_the_documentation_runs(shared: Server, tmp_path: Path) -> None:
    text = (CHECKOUT / "docs" / "api.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    program = program.replace("http://127.0.0.1:7860", shared.url).replace('exposures": 120', 'exposures": 8')
    (tmp_path / "datasets").symlink_to(EXAMPLES)

    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mira.safetensors").stat().st_size > 10_000
    assert (tmp_path / "mira.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("curl") is None, reason="apt-get install curl")
@pytest.mark.parametrize("password", ["", "a long password of ours"])
def test_the_commands_of_the_documentation_run(tmp_path: Path, password: str) -> None:
    text = (CHECKOUT / "docs" / "api.md").read_text(encoding="utf-8")
    create, upload, log_in = (block.split("```")[0] for block in text.split("```bash\n")[1:])
    for name in ("01.png", "01.txt"):
        shutil.copy(CHARACTER / name, tmp_path)
    (tmp_path / "home").mkdir()
    server = Server(make_home(tmp_path / "home"))
    assert create.startswith("server=http://127.0.0.1:7860\n")
    define = create.split("\n", 1)[1]
    commands = f"login=\nserver={server.url}\n{log_in if password else ''}{define}{upload}"
    try:
        server.start(*(["--listen"] if password else []), LIMNER_PASSWORD=password)
        done = subprocess.run(
            ["bash", "-euc", commands], cwd=tmp_path, capture_output=True, text=True, timeout=120,
            env={**os.environ, "LIMNER_PASSWORD": password},
        )  # fmt: skip
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line.removeprefix("data: ")) for line in done.stdout.splitlines() if line.startswith("data:")]
    promised = [line.removeprefix("# data: ") for line in commands.splitlines() if line.startswith("# data: ")]
    assert answers == [json.loads(line) for line in promised]
    assert (server.home / "datasets" / "mira" / "01.png").is_file()


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("create_project", {"name": "../x"}, "not a valid name"),
        ("create_project", {"name": "example-style"}, "already"),
        ("add_images", {"project": "example-style", "images": ["/etc/passwd"]}, "not an uploaded file"),
        ("add_images", {"project": "example-style", "images": [3]}, "not an uploaded file"),
        ("images", {"project": "../x"}, "not a valid name"),
        ("set_caption", {"project": "example-style", "image": "../../x", "caption": ""}, "no longer in the dataset"),
        ("start_training", {"project": "example-style", "settings": {"training.step": 3}}, "training.step"),
        ("start_training", {"project": "example-style", "settings": {"training.steps": -3}}, "Steps"),
        ("status", {"run": "../../etc"}, "not a valid name"),
        ("control", {"run": "nobody", "command": "stop"}, "no run"),
        ("make_picture", {"prompt": "x", "settings": {"step": 3}}, "not a setting of an image"),
        ("make_picture", {"prompt": "x", "adapter": "../../etc/passwd"}, "not a valid name"),
    ],
)
def test_what_a_program_gets_wrong_is_told_in_words(
    shared: Server, name: str, given: dict[str, Any], words: str
) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(shared.url, verbose=False, analytics_enabled=False)
    with pytest.raises(AppError) as caught:
        client.predict(**given, api_name=f"/{name}")
    assert words in str(caught.value)
    assert str(shared.home) not in str(caught.value)
    assert "Traceback" not in str(caught.value)
