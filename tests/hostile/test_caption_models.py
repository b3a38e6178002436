"""Caption models whose files would run a program: refused by name, and confined whatever they do."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny_captioners
from tests.conftest import CHECKOUT
from tests.hostile import attacks
from trainer import captioning, confinement, runs
from trainer.captioning import CaptionConfig, models
from trainer.errors import UserError
from trainer.worker import work

# In the place of timm, with what versions before 1.0.26 do: they unpickle the file that `checkpoint_path` names.
OLD_TIMM = """
import pickle

def create_model(name, pretrained=False, checkpoint_path="", **options):
    if checkpoint_path:
        with open(checkpoint_path, "rb") as file:
            pickle.load(file)
    raise RuntimeError("no model is made here")
"""
# In the place of timm, with a model that runs a program all the same.
HOSTILE_TIMM = """
import os, pathlib, tempfile
from tests.hostile import attacks

def create_model(*names, **options):
    own, other = pathlib.Path(tempfile.gettempdir()), pathlib.Path(os.environ["ATTACKED"])
    raise ValueError("what succeeded: " + attacks.attempt_all(own, other, int(os.environ["ATTACKED_PORT"])))
"""


class Marker:
    """A pickle of this makes a folder where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def install_timm(folder: Path, program: str, version: str) -> None:
    """Write a package in the place of timm."""
    (folder / "timm").mkdir(parents=True)
    (folder / "timm" / "__init__.py").write_text(program, encoding="utf-8")
    (folder / f"timm-{version}.dist-info").mkdir()
    metadata = f"Metadata-Version: 2.1\nName: timm\nVersion: {version}\n"
    (folder / f"timm-{version}.dist-info" / "METADATA").write_text(metadata, encoding="utf-8")


def make_tagger(folder: Path, **changes: object) -> Path:
    """Save the files of a tagger for timm, with changes of its config; its weights are of no matter here."""
    tiny_captioners.make_wd14(folder, "onnx")
    (folder / "model.onnx").unlink()
    (folder / "model.safetensors").write_bytes(b"")
    config = {
        "architecture": "vit_base_patch16_224",
        "model_args": {"img_size": 448},
        "pretrained_cfg": {"input_size": [3, 448, 448], "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return folder


def load(folder: Path) -> object:
    return models.load(CaptionConfig(dataset="rin", model=str(folder)), torch.device("cpu"))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A folder that is made if `evil.pth`, beside it, is unpickled."""
    torch.save(Marker(tmp_path / "ran"), tmp_path / "evil.pth", _use_new_zipfile_serialization=False)
    return tmp_path / "ran"


def forget_timm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.syspath_prepend(str(folder))
    for name in {"timm", *(name for name in sys.modules if name.startswith("timm."))}:
        monkeypatch.setitem(sys.modules, name, sys)  # so that what the test imports is forgotten after it
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("version", ["1.0.25", "1.0.26"])
def test_a_tagger_that_names_a_checkpoint_is_refused(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    install_timm(tmp_path / "packages", OLD_TIMM, version)
    forget_timm(monkeypatch, tmp_path / "packages")
    folder = make_tagger(tmp_path / "model", model_args={"checkpoint_path": str(tmp_path / "evil.pth")})
    with pytest.raises(UserError, match=r"timm 1\.0\.25|checkpoint_path"):
        load(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "local-dir:/tmp"},
        {"architecture": ["vit_base_patch16_224"]},
        {"model_args": {"pretrained_cfg": {"file": "evil.pth"}}},
        {"model_args": {"img_size": {"checkpoint_path": "evil.pth"}}},
        {"model_args": ["checkpoint_path"]},
    ],
)
def test_arguments_of_a_tagger_are_known_by_name(
    tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    install_timm(tmp_path / "packages", "def create_model(*n, **o): raise AssertionError('it was called')", "1.0.26")
    forget_timm(monkeypatch, tmp_path / "packages")
    with pytest.raises(UserError, match="Limner does not know"):
        load(make_tagger(tmp_path / "model", **changes))


def change_config(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return folder


def test_a_model_that_timm_would_make_is_refused(tmp_path: Path, marker: Path) -> None:
    """As a classifier of another type than its architecture, or as a part of a model."""
    arguments = {"checkpoint_path": str(tmp_path / "evil.pth")}
    wrapped = {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "model_args": arguments}
    folder = tiny_captioners.make_tagger(tmp_path / "model")
    for architecture in ("ViTForImageClassification", "TimmWrapperForImageClassification"):
        with pytest.raises(UserError, match=r"timm_wrapper|TimmWrapperForImageClassification"):
            load(change_config(folder, architectures=[architecture], **wrapped))
    for part in ("vision_config", "text_config"):
        with pytest.raises(UserError, match="timm_wrapper"):
            load(change_config(tiny_captioners.make_blip(tmp_path / part), **{part: wrapped}))
    assert not marker.exists()


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
