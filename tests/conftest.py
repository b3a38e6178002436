"""Fixtures for all tests: a home folder of its own for each, and tiny real models made once."""

import os
import shutil
from pathlib import Path

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", GRADIO_ANALYTICS_ENABLED="False",
    TRANSFORMERS_VERBOSITY="error", DIFFUSERS_VERBOSITY="error",
)  # fmt: skip

CHECKOUT = Path(__file__).resolve().parent.parent
CHARACTER = CHECKOUT / "datasets" / "example-character"
STYLE = CHECKOUT / "datasets" / "example-style"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder with `datasets/` and `outputs/`, which this process and its workers use."""
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "outputs").mkdir()
    return tmp_path


@pytest.fixture
def character(home: Path) -> Path:
    """The shipped example character in the home folder, as data set `rin`."""
    folder = home / "datasets" / "rin"
    shutil.copytree(CHARACTER, folder, ignore=shutil.ignore_patterns(".cache"))
    return folder


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny, random Stable Diffusion 1.x model that has the real module names."""
    from tests.tiny import make_sd

    return make_sd(tmp_path_factory.mktemp("tiny") / "sd15")
