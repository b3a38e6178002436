"""What each kind of process does without, so that it starts at once: torch takes seconds to import."""

import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT

HEAVY = ("gradio", "fastapi", "torch", "numpy")
PROXY = """
import socket
from ui import launch
from ui.server import accounts
accounts.read = lambda: {"anna": accounts.NO_ACCOUNT}
launch.make_server(launch.parse_options([]), socket.socket())
"""


@pytest.mark.parametrize(
    ("code", "avoided"),
    [
        ("from trainer.cli.commands import main; assert main(['--help']) == 0", ("torch",)),
        ("from trainer.base_models import detect; detect.glance('not/here')", ("torch",)),
        ("import trainer.config, trainer.data.uploads, trainer.runs, trainer.adapter_files.compatibility", ("torch",)),
        pytest.param("import ui.page", ("torch", "diffusers", "transformers", "peft"), marks=pytest.mark.slow),
        (PROXY, HEAVY),
    ],
    ids=["help", "detect", "data", "page", "proxy"],
)
def test_a_process_imports_no_more_than_it_needs(code: str, avoided: tuple[str, ...]) -> None:
    code += f"\nimport sys; sys.exit(str([name for name in {avoided} if name in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT)
    assert not done.stderr.strip(), done.stderr
