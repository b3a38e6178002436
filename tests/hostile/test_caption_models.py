"""Caption models whose files would run a program: refused by name, and confined whatever they do."""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import tiny_captioners
from tests.conftest import CHECKOUT
from tests.hostile import attacks
from trainer import captioning, confinement, runs
from trainer.captioning import CaptionConfig, models
from trainer.errors import UserError
from trainer.worker import work

# In the place of timm, with a model that runs a program all the same.
HOSTILE_TIMM = """
import os, pathlib, tempfile
from tests.hostile import attacks

def create_model(*names, **options):
    own, other = pathlib.Path(tempfile.gettempdir()), pathlib.Path(os.environ["ATTACKED"])
    raise ValueError("what succeeded: " + attacks.attempt_all(own, other, int(os.environ["ATTACKED_PORT"])))
"""


def install_timm(folder: Path, program: str, version: str) -> None:
    info = folder / f"timm-{version}.dist-info"
    for path in (folder / "timm", info):
        path.mkdir(parents=True)
    (folder / "timm" / "__init__.py").write_text(program, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: timm\nVersion: {version}\n", encoding="utf-8")


def make_tagger(folder: Path) -> Path:
    """Save the files of a tagger for timm; its weights are of no matter here."""
    tiny_captioners.make_wd14(folder, "onnx")
    (folder / "model.onnx").unlink()
    (folder / "model.safetensors").write_bytes(b"")
    sizes = {"input_size": [3, 448, 448], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "vit_base_patch16_224", "model_args": {"img_size": 448}, "pretrained_cfg": sizes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def load(folder: Path, **changes: object) -> object:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return models.load(CaptionConfig(dataset="rin", model=str(folder)), torch.device("cpu"))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a version of timm that must not be called: before 1.0.26, it unpickles what `checkpoint_path` names."""

    def install(version: str) -> None:
        install_timm(tmp_path / "packages", "def create_model(*n, **o): raise AssertionError('called')", version)
        monkeypatch.syspath_prepend(str(tmp_path / "packages"))
        for name in {"timm", *(name for name in sys.modules if name.startswith("timm."))}:
            monkeypatch.setitem(sys.modules, name, sys)  # so that what the test imports is forgotten after it
            monkeypatch.delitem(sys.modules, name)

    return install


def test_a_tagger_is_not_loaded_by_an_old_timm(tmp_path: Path, installed: Callable[[str], None]) -> None:
    installed("1.0.25")
    with pytest.raises(UserError, match=r"timm 1\.0\.25"):
        load(make_tagger(tmp_path / "model"))


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "local-dir:/tmp"},
        {"architecture": ["vit_base_patch16_224"]},
        {"model_args": {"checkpoint_path": "evil.pth"}},
        {"model_args": {"pretrained_cfg": {"file": "evil.pth"}}},
        {"model_args": {"img_size": {"checkpoint_path": "evil.pth"}}},
        {"model_args": ["checkpoint_path"]},
    ],
)
def test_arguments_of_a_tagger_are_known_by_name(
    tmp_path: Path, installed: Callable[[str], None], changes: dict[str, object]
) -> None:
    installed("1.0.26")
    with pytest.raises(UserError, match="Limner does not know"):
        load(make_tagger(tmp_path / "model"), **changes)


def test_a_model_that_timm_would_make_is_refused(tmp_path: Path, installed: Callable[[str], None]) -> None:
    """As a classifier of another type than its architecture, or as a part of a model."""
    installed("1.0.26")
    arguments = {"checkpoint_path": "evil.pth"}
    wrapped = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "model_args": arguments}
    folder = tiny_captioners.make_tagger(tmp_path / "model")
    for architecture in ("ViTForImageClassification", "TimmWrapperForImageClassification"):
        with pytest.raises(UserError, match=r"timm_wrapper|TimmWrapperForImageClassification"):
            load(folder, architectures=[architecture], **wrapped)
    for part in ("vision_config", "text_config"):
        with pytest.raises(UserError, match="timm_wrapper"):
            load(tiny_captioners.make_blip(tmp_path / part), **{part: wrapped})


@pytest.mark.slow
@pytest.mark.skipif(confinement.caution() != "", reason="this system lacks Landlock or seccomp")
def test_a_model_that_runs_a_program_is_confined(
    character: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_timm(tmp_path / "packages", HOSTILE_TIMM, "1.0.26")
    attacked = tmp_path / "attacked"
    attacked.mkdir()
    (attacked / "victim").write_text("untouched")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "packages"), str(CHECKOUT)]))
    monkeypatch.setenv("ATTACKED", str(attacked))
    folder = make_tagger(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as listener, attacks.listening(attacked):
        monkeypatch.setenv("ATTACKED_PORT", str(listener.getsockname()[1]))
        run = captioning.create(CaptionConfig(dataset="rin", model=str(folder), existing="replace"))
        assert work(run) == 2
    assert "what succeeded: []" in runs.look(run).state.message
    assert (attacked / "victim").read_text() == "untouched"
