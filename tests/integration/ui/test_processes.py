"""The page and the processes that it starts, or is."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.unit.ui.tabs.test_file_tools import dropped
from trainer import paths
from trainer.adapter_files import safetensors_reader
from trainer.errors import UserError
from ui.server import accounts
from ui.server.per_user_proxy import COMMAND
from ui.state import adapter_choices
from ui.tabs import file_tools
from ui.tabs.file_tools import Request

__all__ = ["dropped"]


def test_the_page_of_a_user_starts_without_app_py() -> None:
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Limner ")
    assert "app.py" not in COMMAND


def test_the_page_loads_no_model_library() -> None:
    code = "import sys, ui.page; print([m for m in ('torch', 'diffusers', 'transformers', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_tool_makes_a_file_and_tells_what_it_lost(dropped: Path) -> None:
    file_tools.take(str(dropped))
    result = file_tools.run(Request("convert", ["kept:my-fox"], precision="bf16", name="Fox 2"))
    assert "exact up to rounding" in result
    assert "Checked: loads in ComfyUI" in result
    made = safetensors_reader.read(adapter_choices.find("kept:Fox-2"))
    assert {entry.dtype for entry in made.entries.values()} == {"BF16", "F32"}
    with pytest.raises(UserError, match="no name"):
        file_tools.run(Request("convert", ["kept:my-fox"], name=" "))
    with pytest.raises(UserError, match="is not a diffusers model") as caught:
        file_tools.run(Request("bake", ["kept:my-fox"], base=str(paths.adapters()), name="x"))
    assert "Traceback" not in str(caught.value)


def test_the_command_says_the_password_once(home: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, "app.py", *arguments], cwd=CHECKOUT, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, output, _ = run("--add-person", "anna")
    assert code == 0
    assert accounts.read()["anna"].accepts(output.removeprefix("Password of anna: ").strip())
    assert run("--remove-person", "anna") == (
        0,
        f"anna can no longer log in. Their files stay in {home / 'people' / 'anna'}.\n",
        "",
    )
    assert run("--remove-person", "anna") == (2, "", "There is no account 'anna' in people.toml. Accounts: -.\n")
