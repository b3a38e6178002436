"""Distilled models are previewed and tried out as their authors do, and the run says what training on them costs."""

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from tests.integration.training.test_train import cases, finish, same, settings
from trainer import config, runs
from trainer.base_models import few_step
from trainer.config import PictureConfig
from trainer.sampling import sampler

NAMES = {"LCM": "base_lcm", "Turbo": "base-turbo", "Lightning": "base_lightning", "Hyper-SD": "base-Hyper"}
NAMES |= {"DMD2": "x_dmd2"}


@pytest.mark.parametrize("title", cases(NAMES, pytest.mark.slow, ["Lightning"]))
def test_each_kind_is_sampled_as_its_authors_do(bases: dict[str, Path], tmp_path: Path, title: str) -> None:
    (kind,) = [kind for kind in few_step.KINDS if kind.title == title]
    base = shutil.copytree(bases["sdxl"], tmp_path / NAMES[title])
    pipeline: Any = DiffusionPipeline.from_pretrained(base, local_files_only=True)
    scheduler = getattr(diffusers, kind.scheduler)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **kind.scheduler_options)
    pipeline.set_progress_bar_config(disable=True)
    options = {"negative_prompt": "", "num_inference_steps": kind.steps, "guidance_scale": kind.guidance}
    expected = pipeline("rin", generator=torch.Generator().manual_seed(1), **options).images[0]
    preview = config.build({"name": "x", "dataset": "x", "model": {"base": str(base)}}).preview
    request = PictureConfig(base=str(base), prompt="rin", steps=preview.steps, guidance=preview.guidance, out="x.png")
    image = np.asarray(sampler.Sampler().generate(request))
    assert np.array_equal(image, np.asarray(expected))
    original = sampler.Sampler().generate(request.model_copy(update={"base": str(bases["sdxl"])}))
    assert not np.array_equal(image, np.asarray(original))


@pytest.mark.slow
def test_training_is_that_of_the_original_and_warned_of(
    character: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Only sampling differs; the previews of the run are made in few steps."""
    base = shutil.copytree(bases["sdxl"], tmp_path / "base_lightning")
    options: dict[str, Any] = {"training__steps": 2, "preview__every": 2}
    run, original = runs.create(settings(base, **options)), runs.create(settings(bases["sdxl"], **options))
    assert same(finish(run), finish(original))
    assert any("distilled to generate in few steps (Lightning)" in text for text in runs.look(run).state.warnings)
    assert not any("distilled" in text for text in runs.look(original).state.warnings)
    preview, usual = (np.asarray(Image.open(each.folder / "previews" / "000002_0.png")) for each in (run, original))
    assert not np.array_equal(preview, usual)
