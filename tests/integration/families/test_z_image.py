"""Z-Image beside diffusers' own code: texts of different lengths, signs, guidance; its files, and those of adapters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import single_file
from tests.integration.families.test_families import SMALL, answer, load, take
from tests.integration.families.test_transformers import MOST, own_embeddings, their_prediction
from tests.integration.training.test_train import disturb, finished, settings
from trainer import families, runs
from trainer.adapter_files import compatibility, reader, writer
from trainer.base_models import detect, layer_shapes, transformer_names, vae
from trainer.base_models.registry import FAMILIES
from trainer.config import PictureConfig
from trainer.config.adapter import AdapterConfig, LoHa, LoKr, Lora
from trainer.errors import UserError
from trainer.families.quantize import quantize
from trainer.rng import generator
from trainer.sampling import sampler
from trainer.training.batches import Batch
from trainer.training.loss import draw_timesteps, training_loss

PROMPTS = {"one letter": ["a"], "empty": [""], "long": ["a red fox " * 300], "all": ["a", "", "a red fox " * 300]}
SIZE: dict[str, Any] = {"width": 64, "height": 64}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS.keys())
def test_prediction_loss_and_gradients_are_those_of_diffusers(bases: dict[str, Path], prompts: list[str]) -> None:
    """train_dreambooth_lora_z_image of diffusers 58eb52c: the time is turned around, and so is the direction."""
    family, count = load(bases["z_image"]), len(prompts)
    made = settings(bases["z_image"], objective__timestep_sampling="logit-normal", training__text_encoder=False)
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


def test_timesteps_are_shifted_as_the_scheduler_of_the_script_has_them(bases: dict[str, Path]) -> None:
    family = load(bases["z_image"])
    timesteps = FlowMatchEulerDiscreteScheduler.from_config(family.pipeline().scheduler.config).timesteps
    shares = torch.arange(1000, 0, -1) / 1000
    assert torch.allclose(family.noise.at(shares, 0, 999, (1, 16, 8, 8)), timesteps, rtol=1e-5)


def test_prompts_are_read_as_a_chat_up_to_their_own_length(bases: dict[str, Path]) -> None:
    family = load(bases["z_image"])
    encoded = family.encode_prompts(["a red fox", "", "a red fox " * 300])
    tokenizer = family.pipeline().tokenizer
    chat = "<|im_start|>user\na red fox<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(chat, return_tensors="pt").input_ids
    tokens, most = family.count_tokens("a red fox")
    assert encoded["lengths"].tolist() == [tokens + 512 - most, 512 - most, 512]
    with torch.no_grad():
        hidden = family.encoders()["qwen_3_4b"](ids, output_hidden_states=True).hidden_states
    assert torch.allclose(encoded["text"][0, : ids.shape[1]], hidden[-2][0], atol=1e-6)
    noisy, timesteps = torch.randn(3, 16, 8, 8, generator=generator(1)), torch.full((3,), 500.0)

    def changed(token: int) -> Tensor:
        text = encoded["text"].clone()
        text[0, token] += 1
        with torch.no_grad():
            return family.predict(noisy, timesteps, {**encoded, "text": text})

    with torch.no_grad():
        plain = family.predict(noisy, timesteps, encoded)
    assert torch.equal(changed(ids.shape[1]), plain), "what is behind its length is not seen"
    assert not torch.allclose(changed(ids.shape[1] - 1), plain)


def drawn(pipeline: Any, prompt: str, negative: str, guidance: float, seed: int = 1) -> Any:  # noqa: ANN401 - arrays
    """As diffusers' pipeline draws an image, whose guidance is counted from 0."""
    options = {"num_inference_steps": 3, "guidance_scale": guidance, **SIZE}
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        image = pipeline(prompt, negative_prompt=negative, generator=rng, **options).images[0]
    return np.asarray(image).astype(int)


def test_images_are_those_of_the_pipeline(bases: dict[str, Path]) -> None:
    family = load(bases["z_image"])
    fresh: Any = DiffusionPipeline.from_pretrained(bases["z_image"], local_files_only=True)
    fresh.set_progress_bar_config(disable=True)
    images = {}
    for negative, guidance in (("blurry", 5.0), ("", 5.0), ("blurry", 1.0)):
        drawing = {"prompt": "rin, smiling", "negative": negative, "steps": 3, "guidance": guidance, **SIZE}
        image = sampler.generate(family, PictureConfig(base=str(bases["z_image"]), out="x.png", **drawing))
        images[negative, guidance] = np.asarray(image).astype(int)
        assert np.array_equal(images[negative, guidance], drawn(fresh, "rin, smiling", negative, guidance - 1))
    assert not np.array_equal(images["blurry", 5.0], images["", 5.0])
    assert not np.array_equal(images["blurry", 5.0], images["blurry", 1.0])
    latents = family.generate_latents("rin, smiling", seed=1, steps=3, guidance=5.0, side=64)
    preserved = np.asarray(families.decode_latents(family, latents[None])[0]).astype(int)
    assert np.array_equal(preserved, images["", 5.0])
    odd = PictureConfig(base=str(bases["z_image"]), prompt="rin", steps=1, out="x.png", width=72, height=64)
    assert sampler.generate(family, odd).size == (64, 64), "whole tokens of 16 pixels"


def test_the_three_files_of_comfyui_are_the_folder(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    """The diffusion model under its names alone, some with a weight that nobody uses; Qwen3; the VAE of FLUX.1."""
    file = single_file.write_three(bases["z_image"], tmp_path / "models")
    tensors = load_file(file)
    assert "layers.0.attention.qkv.weight" in tensors
    save_file(tensors | {"norm_final.weight": torch.zeros(32)}, file)
    parts = {}
    for base in (bases["z_image"], file, single_file.write(bases["z_image"], tmp_path / "whole.safetensors")):
        own = vae.find(base, detect.look(base), "")
        assert (own is None) == (base != file)
        family = load(base)
        modules = {"transformer": family.denoiser, **family.encoders()}
        parts[base] = {
            f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()
        }
        first = parts[bases["z_image"]]
        assert parts[base].keys() == first.keys()
        assert all(torch.equal(value, first[key]) for key, value in parts[base].items())
        assert torch.equal(answer(family), answer(load(bases["z_image"])))
    (encoder,) = (tmp_path / "models" / "text_encoders").glob("*")
    encoder.unlink()
    with pytest.raises(UserError, match=r"Z-Image, but has no Qwen3\. Put its file, qwen_3_4b\.safetensors, into the"):
        load(file)
    save_file(tensors | {"extra.weight": torch.zeros(3)}, tmp_path / "models" / "diffusion_models" / "more.safetensors")
    single_file.write_apart(bases["z_image"], tmp_path / "models" / "text_encoders" / "x.safetensors")
    with pytest.raises(UserError, match=r"has 3 values that this kind of model does not have, such as extra\.weight"):
        load(tmp_path / "models" / "diffusion_models" / "more.safetensors")


@pytest.mark.slow
def test_the_files_do_what_the_adapter_did(character: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    """The live adapter, the sampler with kohya's file, and a fresh pipeline with each of three files give one image."""
    options = {"training__steps": 4, "export__peft": True, "export__precision": "fp32", **SMALL["z_image"]}
    run = finished(bases["z_image"], **options)
    blocks = ("lora_unet_layers_", "lora_unet_noise_refiner_", "lora_unet_context_refiner_")
    assert all(key.startswith(blocks) for key in load_file(run.export))
    file, peft = reader.read(run.export), run.folder / "peft" / writer.PEFT_NAME
    assert file.family == "z_image"
    verdicts = {program: loads for program, loads, _ in runs.look(run).state.verified[0].verdicts}
    assert verdicts["ComfyUI"]
    assert verdicts["diffusers"]

    family = load(bases["z_image"])
    picture = PictureConfig(base=str(bases["z_image"]), prompt="rin", steps=3, guidance=3.0, out="x.png", **SIZE)
    adapter = families.attach(family, run.config().adapter, text_encoder=False, seed=0)
    take(adapter, file.tensors)
    live = np.asarray(sampler.generate(family, picture)).astype(int)
    painter = sampler.Sampler()
    assert np.abs(np.asarray(painter.generate(picture)).astype(int) - live).max() > MOST
    adapted = painter.generate(picture.model_copy(update={"adapters": ((str(run.export), 1.0),)}))
    assert np.abs(np.asarray(adapted).astype(int) - live).max() <= MOST
    # ai-toolkit's names: those of diffusers below those of ComfyUI, with alpha as large as the rank.
    named, alpha = tmp_path / "ai-toolkit.safetensors", run.config().adapter.alpha
    tensors = {key.replace("transformer.", "diffusion_model."): value for key, value in load_file(peft).items()}
    rank = next(value.shape[0] for key, value in tensors.items() if key.endswith("lora_A.weight"))
    save_file({key: value * (alpha / rank if "lora_B" in key else 1) for key, value in tensors.items()}, named)
    deltas = {name: module.delta() for name, module in file.modules.items()}
    for name, module in reader.read(named).modules.items():
        assert torch.allclose(module.delta(), deltas[name], atol=1e-6)
    for path in (peft, run.export, named):
        fresh: Any = DiffusionPipeline.from_pretrained(bases["z_image"], local_files_only=True)
        fresh.set_progress_bar_config(disable=True)
        fresh.load_lora_weights(str(path.parent), weight_name=path.name)
        assert np.abs(drawn(fresh, "rin", "", 2.0) - live).max() <= (0 if path == peft else MOST)


def test_layers_outside_the_blocks_are_those_of_its_blocks(tmp_path: Path) -> None:
    """Some of their original names are Stable Diffusion 3's, too."""
    outside = ["final_layer.linear", "t_embedder.mlp.0"]
    for form in ("lora_unet_{}", "diffusion_model.{}"):
        names = [form.format(name) for name in ("layers.0.attention.out", *outside)]
        names = [name.replace(".", "_") if form.startswith("lora") else name for name in names]
        ends = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2), "alpha": torch.tensor(2.0)}
        tensors = {f"{name}.{end}": value.clone() for name in names for end, value in ends.items()}
        save_file(tensors, tmp_path / "x.safetensors", writer.of_family("z_image", "flow"))
        paths = {transformer_names.from_original(name, "z_image") for name in outside}
        expected = {"lora_transformer_" + path.replace(".", "_") for path in (*paths, "layers.0.attention.to_out.0")}
        assert reader.read(tmp_path / "x.safetensors").modules.keys() == expected


@pytest.mark.parametrize("kind", [Lora(rank=2, dora=True), LoHa(rank=2), LoKr(rank=2)], ids=["DoRA", "LoHa", "LoKr"])
def test_kinds_that_cannot_be_joined_have_names_that_comfyui_reads(
    bases: dict[str, Path], tmp_path: Path, kind: AdapterConfig
) -> None:
    family, file = load(bases["z_image"]), tmp_path / "x.safetensors"
    adapter = families.attach(family, kind, text_encoder=False, seed=0)
    disturb(adapter)
    live, tensors = answer(family), adapter.tensors()
    adapter.detach()
    facts = writer.of_family("z_image", "flow")
    modules = reader.of_tensors(tensors, "x", facts).modules
    file.write_bytes(writer.write(modules, facts, form="kohya", precision="fp32", family="z_image"))
    assert all(key.startswith("lycoris_") for key in load_file(file))
    known = layer_shapes.of_folder(bases["z_image"], "z_image")
    assert {verdict.program for verdict in compatibility.check(file, known).verdicts if verdict.loads} == {
        "ComfyUI",
        "SD.Next",
    }
    with families.patched(family, [(reader.read(file), 1.0)]):
        assert torch.allclose(answer(family), live, atol=1e-4)


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_attention_and_feed_forward_layers_take_fewer_bits(bits: Any) -> None:  # noqa: ANN401 - literals
    pytest.importorskip("bitsandbytes")
    transformer = ZImageTransformer2DModel(
        dim=192, n_heads=2, n_kv_heads=2, n_layers=1, n_refiner_layers=1, cap_feat_dim=16, axes_dims=[32, 32, 32]
    )
    spec = FAMILIES["z_image"]
    quantize(transformer, bits, spec.modules.quantized, spec.title)
    linear = {path: module for path, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    changed = {path for path, module in linear.items() if type(module) is not torch.nn.Linear}
    assert changed == {path for path in linear if ".attention." in path or ".feed_forward." in path}
