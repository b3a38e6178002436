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

from tests.integration.training.test_train import finish, same, settings
from tests.single_file import write
from trainer import config, families, runs
from trainer.base_models import few_step
from trainer.config import ModelConfig, PictureConfig
from trainer.sampling import sampler

CPU = torch.device("cpu")
NAMES = {
    "LCM": "base_lcm", "Turbo": "base-turbo", "Lightning": "base_lightning", "Hyper-SD": "base-Hyper", "DMD2": "x_dmd2"
}  # fmt: skip


@pytest.mark.parametrize("kind", few_step.KINDS, ids=lambda kind: kind.title)
def test_each_kind_is_sampled_as_its_authors_do(bases: dict[str, Path], tmp_path: Path, kind: few_step.FewStep) -> None:
    base = shutil.copytree(bases["sdxl"], tmp_path / NAMES[kind.title])
    pipeline: Any = DiffusionPipeline.from_pretrained(base, local_files_only=True)
    scheduler = getattr(diffusers, kind.scheduler)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **kind.scheduler_options)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "rin", negative_prompt="", num_inference_steps=kind.steps, guidance_scale=kind.guidance,
        generator=torch.Generator().manual_seed(1),
    ).images[0]  # fmt: skip
    preview = config.build({"name": "x", "dataset": "x", "model": {"base": str(base)}}).preview
    request = PictureConfig(base=str(base), prompt="rin", steps=preview.steps, guidance=preview.guidance, out="x.png")
    image = np.asarray(sampler.Sampler().generate(request))
    assert np.array_equal(image, np.asarray(expected))
    original = sampler.Sampler().generate(request.model_copy(update={"base": str(bases["sdxl"])}))
    assert not np.array_equal(image, np.asarray(original))


def test_the_timesteps_are_those_of_the_authors(tiny_configs: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    for name, timesteps in {
        "x_dmd2": [999, 749, 499, 249],  # the model card of DMD2
        "base_lightning_4step": [999, 749, 499, 249],  # trailing
        "base_turbo": [999, 749, 499, 249],
    }.items():
        file = write(bases["sdxl"], tmp_path / f"{name}.safetensors")
        family = families.load(ModelConfig(base=str(file)), CPU, torch.float32)
        scheduler = family.pipeline().scheduler
        scheduler.set_timesteps(4)
        assert [round(float(timestep)) for timestep in scheduler.timesteps] == timesteps, name
        scheduler.set_timesteps(200)  # as many as the settings allow


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
    preview, usual = (np.asarray(Image.open(one.folder / "previews" / "000002_0.png")) for one in (run, original))
    assert not np.array_equal(preview, usual)
