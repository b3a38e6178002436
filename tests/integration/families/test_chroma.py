"""Chroma beside diffusers' own code: the mask of T5's padding, gradients, guidance, and the adapter's files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from tests.integration.families.test_families import SMALL, load, take
from tests.integration.families.test_transformers import MOST, own_embeddings, their_prediction
from tests.integration.training.test_train import disturb, finished, settings
from trainer import families, runs
from trainer.adapter_files import reader, writer
from trainer.config import PictureConfig
from trainer.families import Family
from trainer.rng import generator
from trainer.sampling import sampler
from trainer.training.batches import Batch
from trainer.training.loss import draw_timesteps, training_loss

PROMPTS = {"one letter": ["a"], "empty": [""], "long": ["a red fox " * 300], "all": ["a", "", "a red fox " * 300]}
SIZE: dict[str, Any] = {"width": 64, "height": 64}


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


def test_of_padding_one_token_is_seen(bases: dict[str, Path]) -> None:
    family = load(bases["chroma"])
    encoded = family.encode_prompts(["a red fox", ""])
    counts = [len(family.pipeline().tokenizer(prompt).input_ids) for prompt in ("a red fox", "")]
    assert encoded["mask"].sum(1).tolist() == [count + 1 for count in counts]
    noisy, timesteps = torch.randn(2, 16, 8, 8, generator=generator(1)), torch.tensor([500.0, 500.0])

    def changed(token: int) -> Tensor:
        text = encoded["text"].clone()
        text[0, token] += 1
        with torch.no_grad():
            return family.predict(noisy, timesteps, {**encoded, "text": text})

    with torch.no_grad():
        plain = family.predict(noisy, timesteps, encoded)
    assert not torch.allclose(changed(counts[0]), plain), "the first"
    assert torch.equal(changed(counts[0] + 1), plain), "the second is masked"


def drawn(pipeline: Any, family: Family, prompts: tuple[str, str], guidance: float, seed: int) -> Any:  # noqa: ANN401 - arrays
    """As diffusers' pipeline draws an image of prompts that are encoded with a mask of truth values."""
    names = ("prompt_embeds", "prompt_attention_mask")
    encoded: dict[str, Tensor] = {}
    for start, prompt in zip(("", "negative_"), prompts, strict=True):
        text, mask = own_embeddings(family, [prompt])
        encoded |= {f"{start}{name}": value for name, value in zip(names, (text, mask.bool()), strict=True)}
    options = {"num_inference_steps": 3, "guidance_scale": guidance, **SIZE, **encoded}
    with torch.no_grad():
        return np.asarray(pipeline(generator=torch.Generator().manual_seed(seed), **options).images[0]).astype(int)


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


@pytest.mark.slow
def test_the_files_do_what_the_adapter_did(character: Path, bases: dict[str, Path]) -> None:
    """The live adapter, the sampler with kohya's file and a fresh pipeline with PEFT's give one image."""
    options = {"training__steps": 4, "export__peft": True, "export__precision": "fp32", **SMALL["chroma"]}
    run = finished(bases["chroma"], **options)
    assert all(key.startswith(("lora_unet_double_", "lora_unet_single_")) for key in load_file(run.export))
    file, peft = reader.read(run.export), run.folder / "peft" / writer.PEFT_NAME
    assert file.family == "chroma"
    assert runs.look(run).state.verified[0].verdicts[0][1], "ComfyUI loads it, for a base of no published size"

    family = load(bases["chroma"])
    picture = PictureConfig(base=str(bases["chroma"]), prompt="rin", steps=3, guidance=3.0, out="x.png", **SIZE)
    adapter = families.attach(family, run.config().adapter, text_encoder=False, seed=0)
    take(adapter, file.tensors)
    live = np.asarray(sampler.generate(family, picture)).astype(int)
    painter = sampler.Sampler()
    assert np.abs(np.asarray(painter.generate(picture)).astype(int) - live).max() > MOST
    adapted = painter.generate(picture.model_copy(update={"adapters": ((str(run.export), 1.0),)}))
    assert np.abs(np.asarray(adapted).astype(int) - live).max() <= MOST
    fresh: Any = DiffusionPipeline.from_pretrained(bases["chroma"], local_files_only=True)
    fresh.set_progress_bar_config(disable=True)
    fresh.load_lora_weights(str(peft.parent), weight_name=peft.name)
    assert np.array_equal(drawn(fresh, family, ("rin", ""), 3.0, 1), live)
