"""Benchmarks: arithmetic against figures by hand, recipes that are valid settings, and a small run of one."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.conftest import CHARACTER, CHECKOUT, unmeasured


@pytest.mark.nightly
@pytest.mark.parametrize("program", [("benchmarks.quality",), ("scripts.pretrain_micro", "--work", "work")], ids=str)
def test_a_long_program_in_small(tmp_path: Path, program: tuple[str, ...]) -> None:
    environment = unmeasured() | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *program, "--smoke"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NOTEBOOK = CHECKOUT / "docs" / "rented-gpu.ipynb"
# The package is installed; the installer and the self-test have tests of their own.
LEFT_OUT = ("!python limner/scripts/install.py", "!limner selftest")


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def as_python(cell: str) -> str:
    """Turn lines for the shell into calls of `shell`, as Jupyter does."""
    lines = [line for line in cell.splitlines() if not line.strip().startswith(LEFT_OUT)]
    return "\n".join(re.sub(r"^(\s*)!(.*)$", lambda match: f"{match[1]}shell({match[2]!r})", line) for line in lines)


@pytest.mark.nightly
def test_the_cells_train_try_out_and_leave_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path))
    shutil.copytree(CHARACTER, tmp_path / "images", ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setenv("PATH", os.environ["PATH"])  # which a cell changes
    names: dict[str, object] = {}

    def shell(line: str) -> None:
        command = shlex.split(line.format(**{name: value for name, value in names.items() if name.isupper()}))
        assert command[0] == "limner"
        done = subprocess.run([sys.executable, "-m", "trainer", *command[1:]], capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)

    names["shell"] = shell
    previews: list[tuple[int, int]] = []

    def display(output: object) -> None:
        if isinstance(output, Image.Image):
            with output:  # `Image.open` leaves its file open
                previews.append(output.size)

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    for cell in cells():
        code = as_python(cell).replace('BASE = "stabilityai/stable-diffusion-xl-base-1.0"', 'BASE = "micro"')
        code = code.replace("[model]\n", "training.steps = 4\n[model]\n")
        exec(compile(code, str(NOTEBOOK), "exec"), names)  # noqa: S102 - the notebook is ours
    assert os.environ["PATH"].split(os.pathsep)[0] == str(tmp_path / "limner" / ".venv" / "bin"), "where `!limner` is"
    assert (tmp_path / "run" / "mira.safetensors").is_file()
    assert previews
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
