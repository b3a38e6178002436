"""Chroma beside diffusers' own code: the mask of T5's padding, gradients, guidance, and the adapter's files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from tests.integration.families.test_families import load
from tests.integration.families.test_transformers import SIZE, drawn, own_embeddings, their_prediction
from tests.integration.training.test_train import disturb, settings
from trainer import families
from trainer.config import PictureConfig
from trainer.rng import generator
from trainer.sampling import sampler
from trainer.training.batches import Batch
from trainer.training.loss import draw_timesteps, training_loss

PROMPTS = {"one letter": ["a"], "empty": [""], "long": ["a red fox " * 300], "all": ["a", "", "a red fox " * 300]}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS.keys())
def test_prediction_loss_and_gradients_are_those_of_diffusers(bases: dict[str, Path], prompts: list[str]) -> None:
    family, count = load(bases["chroma"]), len(prompts)
    made = settings(bases["chroma"], objective__timestep_sampling="logit-normal", training__text_encoder=False)
    adapter = families.attach(family, made.adapter, text_encoder=False, seed=0)
    disturb(adapter)
    conditioning = {key: row.float() for key, row in family.encode_prompts(prompts).items()}  # as they are stored
    shape = (count, 16, 8, 8)
    mean, std = torch.randn(shape, generator=generator(1)), torch.rand(shape, generator=generator(2))
    batch = Batch(mean, std, {**conditioning, "sizes": torch.zeros(count, 6)}, tuple(prompts), count)
    ours = training_loss(family, adapter, batch, made, generator(3))
    gradients = torch.autograd.grad(ours, list(adapter.parameters()))

    rng = generator(3)
    latents = mean + std * torch.randn(shape, generator=rng)
    noise = torch.randn(shape, generator=rng)
    timesteps = draw_timesteps(count, family.noise, made.objective, rng, shape)
    sigmas = (timesteps / 1000).view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * latents + sigmas * noise
    with torch.no_grad():
        embeddings = own_embeddings(family, prompts)
    predicted = their_prediction(family, noisy, timesteps, *embeddings)
    with torch.no_grad():
        assert torch.allclose(family.predict(noisy, timesteps, conditioning), predicted, atol=1e-5)
    theirs = ((predicted - (noise - latents)) ** 2).mean()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for own, expected in zip(gradients, torch.autograd.grad(theirs, list(adapter.parameters())), strict=True):
        assert own.isfinite().all()
        assert torch.allclose(own, expected, rtol=1e-5, atol=1e-7)


def test_images_are_guided_by_a_negative_prompt(bases: dict[str, Path]) -> None:
    family = load(bases["chroma"])
    fresh: Any = DiffusionPipeline.from_pretrained(bases["chroma"], local_files_only=True)
    fresh.set_progress_bar_config(disable=True)
    images = {}
    for negative, guidance in (("blurry", 4.0), ("", 4.0), ("blurry", 1.0)):
        drawing = {"prompt": "rin, smiling", "negative": negative, "steps": 3, "guidance": guidance, **SIZE}
        image = sampler.generate(family, PictureConfig(base=str(bases["chroma"]), out="x.png", **drawing))
        images[negative, guidance] = np.asarray(image).astype(int)
        expected = drawn(fresh, family, ("rin, smiling", negative), guidance, 1)
        assert np.array_equal(images[negative, guidance], expected)
    assert not np.array_equal(images["blurry", 4.0], images["", 4.0])
    assert not np.array_equal(images["blurry", 4.0], images["blurry", 1.0])
    latents = family.generate_latents("rin, smiling", seed=1, steps=3, guidance=4.0, side=64)
    preserved = np.asarray(families.decode_latents(family, latents[None])[0]).astype(int)
    assert np.array_equal(preserved, images["", 4.0])
