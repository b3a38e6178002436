"""Clip skip: the text encoder is read before its last layer, in training and in sampling, as other programs do it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from tests.integration.training.test_train import finish, losses, quiet, same, settings
from trainer import families, runs
from trainer.adapter_files import reader
from trainer.config import ModelConfig, PictureConfig
from trainer.data import dataset
from trainer.families import Family
from trainer.sampling import sampler
from trainer.training import encode

CPU = torch.device("cpu")
TEXT = {"training__text_encoder": True}


def load(base: Path, clip_skip: int = 1) -> Family:
    return families.load(ModelConfig(base=str(base), clip_skip=clip_skip), CPU, torch.float32)


def diffusers_pipeline(base: Path) -> Any:  # noqa: ANN401 - diffusers is untyped
    pipeline = DiffusionPipeline.from_pretrained(base, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if not hasattr(pipeline.text_encoder, "text_model"):  # diffusers asks for it, transformers 5 has it no more
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    return pipeline


def test_images_are_those_of_diffusers(tiny_sd: Path) -> None:
    pipeline = diffusers_pipeline(tiny_sd)
    negative = pipeline.encode_prompt("hat", CPU, 1, False, clip_skip=1)[0]
    request = PictureConfig(
        base=str(tiny_sd), prompt="rin", negative="hat", steps=3, guidance=3.0, clip_skip=2, out="x.png"
    )
    options = {"negative_prompt_embeds": negative, "clip_skip": 1, "num_inference_steps": 3, "guidance_scale": 3.0}
    expected = pipeline("rin", generator=torch.Generator().manual_seed(1), **options).images[0]
    painter = sampler.Sampler()
    image = np.asarray(painter.generate(request))
    assert np.array_equal(image, np.asarray(expected))
    usual = np.asarray(painter.generate(request.model_copy(update={"clip_skip": 1})))
    assert not np.array_equal(image, usual)
    assert np.array_equal(np.asarray(painter.generate(request)), image)


@pytest.mark.slow
def test_a_run_teaches_and_shows_what_its_file_does(character: Path, tiny_sd: Path) -> None:
    """The text encoder's last layer, which has no effect, gets no adapter; one from elsewhere may have one."""
    options: dict[str, Any] = TEXT | {"training__steps": 4, "preview__every": 4, "export__precision": "fp32"}
    run = runs.create(settings(tiny_sd, model__clip_skip=2, **options))
    usual = runs.create(settings(tiny_sd, **options))
    finish(run)
    finish(usual)
    assert losses(run) != losses(usual)
    file = reader.read(run.export)
    assert (file.metadata["ss_clip_skip"], reader.read(usual.export).metadata["ss_clip_skip"]) == ("2", "1")
    layers = {name.split("_layers_")[1][0] for name in file.modules if name.startswith("lora_te_")}
    assert layers == {"0"}

    def generate(adapter: Path) -> np.ndarray[Any, Any]:
        request = PictureConfig(
            base=str(tiny_sd), adapters=((str(adapter), 1.0),), prompt="rin", steps=2, clip_skip=2, out="x.png"
        )
        return np.asarray(sampler.Sampler().generate(request)).astype(int)

    with Image.open(run.folder / "previews" / "000004_0.png") as image:
        preview = np.asarray(image).astype(int)
        assert json.loads(image.text["limner"])["clip_skip"] == 2
    assert np.abs(generate(run.export) - preview).max() <= 1, "rounded otherwise"
    assert np.abs(generate(usual.export) - preview).max() > 1


def test_cached_embeddings_are_kept_apart(character: Path, tiny_sd: Path) -> None:
    examples = dataset.read(character, "rin")
    for clip_skip in (1, 2, 1):
        family = load(tiny_sd, clip_skip)
        batches = encode.build(family, examples, settings(tiny_sd, model__clip_skip=clip_skip), quiet)
        prompt = sorted(batches.conditioning)[-1]
        stored = batches.cache.get(batches.conditioning[prompt])["text"]
        assert torch.equal(stored, family.encode_prompts([prompt])["text"][0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sdxl", "sd21"])
def test_other_families_ignore_it_and_say_so(character: Path, bases: dict[str, Path], kind: str) -> None:
    run = runs.create(settings(bases[kind], model__clip_skip=2, training__steps=2))
    usual = runs.create(settings(bases[kind], training__steps=2))
    assert same(finish(run), finish(usual))
    assert any("Clip skip is ignored" in warning for warning in runs.look(run).state.warnings)
    assert not any("Clip skip" in warning for warning in runs.look(usual).state.warnings)
    assert (run.config().model.clip_skip, reader.read(run.export).metadata["ss_clip_skip"]) == (1, "None")
