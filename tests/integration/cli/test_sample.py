"""`limner sample` suits its settings to the base model and the adapter where it is not told otherwise."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests import tiny
from tests.integration.training.test_train import finish, settings
from trainer import runs
from trainer.adapter_files import reader
from trainer.cli.commands import app


def sample(folder: Path, *arguments: object) -> dict[str, Any]:
    """Generate an image; returns the settings in its file."""
    out = folder / "x.png"
    done = CliRunner().invoke(app, ["sample", "--prompt", "rin", "--out", str(out), *map(str, arguments)])
    assert done.exit_code == 0, done.exception
    with Image.open(out) as image:
        facts: dict[str, Any] = json.loads(image.text["limner"])
        return facts | {"pixels": image.tobytes()}


@pytest.mark.slow
def test_settings_follow_from_the_base_and_the_adapter(character: Path, tiny_sd: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_sd, tmp_path / "anything-v3_lcm")
    suited = sample(tmp_path, "--base", base)
    assert (suited["steps"], suited["guidance"], suited["clip_skip"]) == (8, 1.5, 2)
    typed = sample(tmp_path, "--base", base, "--steps", 2, "--guidance", 3, "--clip-skip", 1)
    assert (typed["steps"], typed["guidance"], typed["clip_skip"]) == (2, 3, 1)
    run = runs.create(settings(tiny_sd, training__steps=1))
    finish(run)
    assert sample(tmp_path, "--base", base, "--steps", 2, "--adapter", run.export)["clip_skip"] == 1
    file = reader.read(run.export)
    save_file(dict(file.tensors), tmp_path / "two.safetensors", metadata={"ss_clip_skip": "2"})
    assert (
        sample(tmp_path, "--base", tiny_sd, "--steps", 2, "--adapter", tmp_path / "two.safetensors")["clip_skip"] == 2
    )
    own = sample(tmp_path, "--base", tiny_sd, "--steps", 2)
    tiny._vae().save_pretrained(tmp_path / "vae")
    other = sample(tmp_path, "--base", tiny_sd, "--steps", 2, "--vae", tmp_path / "vae")
    assert other["pixels"] != own["pixels"]
    assert other | {"pixels": b""} == own | {"pixels": b""}, "paths stay private"
