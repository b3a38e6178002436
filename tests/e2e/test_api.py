"""The page for programs: the whole way with the Gradio client, and a piece of it with nothing but HTTP."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HANG
from tests.e2e.conftest import CHECKOUT, EXAMPLES, Server, make_home

pytestmark = pytest.mark.nightly

CHARACTER = EXAMPLES / "example-character"


def test_the_program_of_the_documentation_runs(shared: Server, tmp_path: Path) -> None:
    text = (CHECKOUT / "docs" / "api.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    program = program.replace("http://127.0.0.1:7860", shared.url).replace('exposures": 120', 'exposures": 8')
    (tmp_path / "datasets").symlink_to(EXAMPLES)

    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=HANG)
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
            ["bash", "-euc", commands],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=HANG,
            env={**os.environ, "LIMNER_PASSWORD": password},
        )
    finally:
        server.stop()
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line.removeprefix("data: ")) for line in done.stdout.splitlines() if line.startswith("data:")]
    promised = [line.removeprefix("# data: ") for line in commands.splitlines() if line.startswith("# data: ")]
    assert answers == [json.loads(line) for line in promised]
    assert (server.home / "datasets" / "mira" / "01.png").is_file()
