"""Extensions can be removed, and be published by others."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, distribution
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, unmeasured
from trainer import extension, runs, worker
from trainer.config import build
from trainer.errors import UserError

OWN = sorted(path.parent.name for path in (CHECKOUT / "limner_extensions").glob("*/__init__.py"))
PAGE = CHECKOUT / "docs" / "development" / "extensions.md"
MAIN_JOB = """
import sys
from fastapi.testclient import TestClient
import limner_extensions
from trainer.cli.commands import main
assert limner_extensions.__file__.startswith(sys.argv[1]), limner_extensions.__file__
settings = sys.argv[2]
code = main(["train", settings, "--set", "training.steps=2", "--set", "training.batch_size=1"])
assert code == 0, code
from ui import launch
launch.prepare_environment()
from ui import page
with TestClient(page.make_app()) as client:
    assert client.get("/").status_code == 200
"""


def without(removed: set[str], folder: Path) -> Path:
    """Copy the checkout without some extensions and their tests."""

    def left_out(place: str, names: list[str]) -> set[str]:
        inside = Path(place).relative_to(CHECKOUT)
        if inside.name in ("limner_extensions", "extensions"):
            return removed & set(names)
        hidden = {"node_modules", "__pycache__"}
        if not inside.parts:
            hidden |= {"outputs", ".venv", ".git", ".mypy_cache", ".ruff_cache"}
        return hidden & set(names)

    return Path(shutil.copytree(CHECKOUT, folder / "copy", ignore=left_out, copy_function=os.link))


def run_in(copy: Path, home: Path, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = unmeasured() | {"PYTHONPATH": str(copy), "LIMNER_HOME": str(home), "PYTEST_ADDOPTS": ""} | variables
    return subprocess.run([sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_without_extensions_the_main_job_works(character: Path, tmp_path: Path) -> None:
    """Without all at once: that none needs another one is a contract of the imports, and tested at night."""
    (settings := tmp_path / "rin.toml").write_text(
        'name = "rin"\ndataset = "rin"\n[preview]\nevery = 0\n', encoding="utf-8"
    )
    copy = without(set(OWN), tmp_path / "without")
    done = run_in(copy, tmp_path, "-c", MAIN_JOB, copy, settings)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"The extension (\w+) cannot be used", done.stderr) == OWN
    assert list((tmp_path / "outputs").glob("*_rin/rin.safetensors"))


def test_tests_belong_to_one_extension_or_to_the_core() -> None:
    for path in (CHECKOUT / "tests").rglob("*.py"):
        inside = path.relative_to(CHECKOUT / "tests").parts
        own = inside[1] if inside[0] == "extensions" else ""
        names = re.findall(r"(?:limner_extensions|tests\.extensions)\.(\w+)", path.read_text(encoding="utf-8"))
        assert set(names) <= {own} or path.name == Path(__file__).name, path


@pytest.mark.nightly
@pytest.mark.parametrize("name", OWN)
def test_without_an_extension_the_other_tests_pass(name: str, home: Path, tmp_path: Path) -> None:
    copy = without({name}, tmp_path / "without")
    (facts := tmp_path / "installed" / "limner-0.dist-info").mkdir(parents=True)  # found before those of the checkout
    for file in ("METADATA", "entry_points.txt"):
        lines = (distribution("limner").read_text(file) or "").splitlines(keepends=True)
        (facts / file).write_text("".join(line for line in lines if not line.startswith(f"{name} =")), encoding="utf-8")
    of_all = ("unit/test_style", "unit/test_docs", "extensions/test_documented_commands", "extensions/test_extensions")
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"--deselect=tests/{name}.py" for name in of_all))
    done = run_in(copy, home, *command, PYTHONPATH=f"{copy}{os.pathsep}{facts.parent}")
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.slow
def test_an_extension_of_somebody_else_is_found(character: Path, tmp_path: Path) -> None:
    """The example of the documentation, as a package that is installed beside Limner."""
    module, project = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (source := tmp_path / "source").mkdir()
    site = tmp_path / "site"
    (source / "limner_tally.py").write_text(module, encoding="utf-8")
    (source / "pyproject.toml").write_text(project, encoding="utf-8")
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", site, source)
    installed = run_in(CHECKOUT, tmp_path, *pip)
    assert installed.returncode == 0, installed.stderr
    line = "14 images, 84 words in their captions."
    code = "from trainer.cli.commands import main; [main([command, 'rin']) for command in ('tally', 'check')]"
    done = run_in(site, tmp_path, "-c", code)
    assert done.stdout.count(line) == 2, done.stdout + done.stderr


def test_every_name_in_an_extension_can_be_imported() -> None:
    assert [own.name for own in extension.installed() if own.name in OWN] == OWN
    for own in extension.installed():
        names = [own.commands, own.routes, *own.jobs.values(), *own.places.values(), *own.panels.values()]
        assert all(map(extension.load, filter(None, names)))


def test_every_slot_is_described() -> None:
    program = [CHECKOUT / "limner_extensions", CHECKOUT / "trainer", CHECKOUT / "ui"]
    sources = [path.read_text(encoding="utf-8") for folder in program for path in folder.rglob("*.py")]
    slots = {slot for source in sources for slot in re.findall(r'extension\.panels\("([\w-]+)"\)', source)}
    used = {slot for own in extension.installed() for slot in own.panels}
    assert used <= slots
    assert slots == set(
        re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(encoding="utf-8").rpartition("| slot |")[2], re.M)
    )


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def replace(**entries: str) -> None:
        points = [EntryPoint(name, value, extension.GROUP) for name, value in entries.items()]
        monkeypatch.setattr(extension, "entry_points", lambda group: points)
        extension.installed.cache_clear()

    yield replace
    extension.installed.cache_clear()


def test_a_broken_extension_is_left_out_with_a_warning(
    replaced: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    replaced(gone="limner_gone:EXTENSION", wrong="trainer.paths:home", good="limner_extensions.recipes:EXTENSION")
    assert [own.name for own in extension.installed()] == ["recipes"]
    assert [record.getMessage() for record in caplog.records] == [
        "The extension gone cannot be used: No module named 'limner_gone'",
        "The extension wrong cannot be used: trainer.paths:home is not an Extension",
    ]


def test_a_run_without_its_extension_says_so(character: Path, replaced: Callable[..., None]) -> None:
    replaced()
    with pytest.raises(UserError, match="No installed extension sends runs to ssh://fox"):
        runs.create(build({"name": "rin", "dataset": "rin"}), cluster="ssh://fox")
    run = runs.create(build({"name": "rin", "dataset": "rin"}))
    run.config_file.write_text('task = "dance"\n', encoding="utf-8")
    assert worker.work(run) == 2
    assert runs.look(run).state.message == "No installed extension does 'dance'."
