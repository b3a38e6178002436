"""What families with Qwen3 have of their own: shifted timesteps, prompts as chats, their files, and of adapters."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.integration.families.models import answer, load
from tests.integration.training.test_train import disturb
from trainer import families
from trainer.adapter_files import compatibility, reader, writer
from trainer.base_models import layer_shapes, transformer_names
from trainer.base_models.registry import FamilyName
from trainer.config import PictureConfig
from trainer.config.adapter import AdapterConfig, LoHa, LoKr, Lora
from trainer.rng import generator
from trainer.sampling import sampler

KINDS = ("z_image", "flux2_klein")


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


def test_latents_are_normalized_as_the_script_does_it(bases: dict[str, Path]) -> None:
    """Of FLUX.2 klein, whose text is three layers of Qwen3, to which an answer without thoughts is begun."""
    family, pixels = load(bases["flux2_klein"]), torch.rand(1, 3, 64, 64, generator=generator(1)) * 2 - 1
    pipeline, vae = family.pipeline(), family.pipeline().vae
    with torch.no_grad():
        packs = pipeline._patchify_latents(vae.encode(pixels).latent_dist.mode())
    spread = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    theirs = (packs - vae.bn.running_mean.view(1, -1, 1, 1)) / spread.view(1, -1, 1, 1)
    mean, std = families.encode_images(family, pixels)
    assert torch.allclose(pipeline._patchify_latents(mean), theirs, atol=1e-5)
    assert (std > 0).all()
    chat = "<|im_start|>user\na red fox<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ids = pipeline.tokenizer(chat, return_tensors="pt").input_ids
    tokens, most = family.count_tokens("a red fox")
    assert ids.shape[1] == tokens + 512 - most
    with torch.no_grad():
        hidden = family.encoders()["qwen_3_4b"](ids, output_hidden_states=True).hidden_states
    joined = torch.cat([hidden[layer] for layer in (9, 18, 27)], dim=-1)
    assert torch.allclose(family.encode_prompts(["a red fox"])["text"][:, : ids.shape[1]], joined, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_is_one_of_whole_tokens(bases: dict[str, Path], kind: str) -> None:
    odd = PictureConfig(base=str(bases[kind]), prompt="rin", steps=1, out="x.png", width=72, height=64)
    assert sampler.generate(load(bases[kind]), odd).size == (64, 64)


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


READS = {"z_image": ("lycoris_", {"ComfyUI", "SD.Next"}), "flux2_klein": ("lora_transformer_", {"ComfyUI"})}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", [Lora(rank=2, dora=True), LoHa(rank=2), LoKr(rank=2)], ids=["DoRA", "LoHa", "LoKr"])
def test_kinds_that_cannot_be_joined_have_names_that_comfyui_reads(
    bases: dict[str, Path], tmp_path: Path, kind: AdapterConfig, name: FamilyName
) -> None:
    family, file = load(bases[name]), tmp_path / "x.safetensors"
    adapter = families.attach(family, kind, text_encoder=False, seed=0)
    disturb(adapter)
    live, tensors = answer(family), adapter.tensors()
    adapter.detach()
    facts = writer.of_family(name, "flow")
    modules = reader.of_tensors(tensors, "x", facts).modules
    file.write_bytes(writer.write(modules, facts, form="kohya", precision="fp32", family=name))
    assert all(key.startswith(READS[name][0]) for key in load_file(file))
    known = layer_shapes.of_folder(bases[name], name)
    verdicts = compatibility.check(file, known).verdicts
    assert {verdict.program for verdict in verdicts if verdict.loads} == READS[name][1]
    with families.patched(family, [(reader.read(file), 1.0)]):
        assert torch.allclose(answer(family), live, atol=1e-4)
