"""The page and the processes that it starts, or is."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import CHECKOUT
from ui.server import accounts


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
