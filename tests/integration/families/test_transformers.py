"""Families with a transformer that are trained by flow matching: as diffusers trains and asks them, and their files."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.transformers import transformer_cosmos
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import load as parse
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

from tests import single_file
from tests.integration.families.models import answer, each, family_of, fresh, load, options_of
from tests.integration.training.test_train import attached, disturb, settings
from trainer import config, families, runs
from trainer.adapter_files import compatibility, reader, writer
from trainer.base_models import CONFIGS, layer_shapes, transformer_names
from trainer.base_models.registry import FAMILIES, TRANSFORMERS, FamilyName
from trainer.cli.commands import main
from trainer.config import ModelConfig, PictureConfig
from trainer.config.adapter import AdapterConfig, LoHa, LoKr, Lora
from trainer.data import dataset
from trainer.errors import UserError
from trainer.families import Family
from trainer.families.family import LENGTHS, without_padding
from trainer.families.files import text_encoders
from trainer.families.hardware import quantize
from trainer.rng import generator
from trainer.sampling import sampler
from trainer.training import export
from trainer.training.inputs import encode
from trainer.training.inputs.batches import Batch
from trainer.training.loss import draw_timesteps, training_loss

PROMPTS = ["rin, smiling", "a portrait"]
# In the place of torchvision, with which Anima's pipeline resizes a mask.
RESIZING = SimpleNamespace(
    functional=SimpleNamespace(resize=lambda mask, size, interpolation: interpolate(mask, size, mode=interpolation)),
    InterpolationMode=SimpleNamespace(NEAREST="nearest"),
)
SIZE: dict[str, Any] = {"width": 64, "height": 64}
MOST = 2  # of 255 that a pixel may differ where weights are changed instead of adapted


def own_embeddings(family: Family, prompts: list[str] = PROMPTS) -> tuple[Tensor, ...]:
    """Prompt embeddings as the family's own pipeline makes them: text, and pooled or the mask."""
    name = family.spec.name
    if name == "anima":
        return (_of_blocks(family.pipeline(), prompts),)
    encode_prompt = family.pipeline().encode_prompt
    if name == "flux":
        return encode_prompt(prompts, None)[:2]
    if name == "chroma":
        return encode_prompt(prompts, do_classifier_free_guidance=False)[:3:2]
    if name == "z_image":
        return tuple(encode_prompt(list(prompts), do_classifier_free_guidance=False)[0])
    if name == "flux2_klein":
        return encode_prompt(prompts)[:1]
    if name in ("qwen_image", "krea2"):  # the text encoder of Krea 2 is a part of the published one
        text, mask = encode_prompt(prompts, max_sequence_length=512)
        return (text,) if mask is None else (text, mask)
    return encode_prompt(prompts, None, None, do_classifier_free_guidance=False)[::2]


def _of_blocks(pipeline: Any, prompts: list[str]) -> Tensor:  # noqa: ANN401 - Anima's
    """Prompt embeddings as the blocks of diffusers make them of all prompts at once, with masks."""
    encode = AnimaTextEncoderStep.encode_prompt
    encoded = encode(pipeline, prompts, prepare_unconditional_embeds=False, device=pipeline.device)
    masks = {
        f"{name}_attention_mask": encoded[f"{part}_attention_mask"]
        for name, part in (("source", "qwen"), ("target", "t5"))
    }
    return pipeline.text_conditioner(encoded["qwen_prompt_embeds"], encoded["t5_input_ids"], **masks)


def their_prediction(family: Family, noisy: Tensor, timesteps: Tensor, text: Tensor, *more: Tensor) -> Tensor:
    """As the training script of diffusers for the family asks the transformer; Chroma's pipeline, which has none."""
    name, pipeline = family.spec.name, family.pipeline()
    count, channels, *sides = noisy.shape
    if name == "z_image":
        inputs = [latents[:, None] for latents in noisy], (1000 - timesteps) / 1000, [text, *more]
        return -torch.stack(family.denoiser(*inputs, return_dict=False)[0])[:, :, 0]
    options: dict[str, Any] = {"encoder_hidden_states": text, "timestep": timesteps, "return_dict": False}
    if name.startswith("sd3"):
        return family.denoiser(hidden_states=noisy, pooled_projections=more[0], **options)[0]
    options["timestep"] = timesteps / 1000
    if name == "anima":
        return family.denoiser(hidden_states=noisy[:, :, None], **options)[0][:, :, 0]
    if name == "flux2_klein":
        packs = pipeline._patchify_latents(noisy)
        places = pipeline._prepare_latent_ids(packs)
        options |= {"img_ids": places, "txt_ids": pipeline._prepare_text_ids(text), "guidance": None}
        output = family.denoiser(hidden_states=pipeline._pack_latents(packs), **options)[0]
        return pipeline._unpatchify_latents(pipeline._unpack_latents_with_ids(output, places))
    tokens, grid = pipeline._pack_latents(noisy, count, channels, *sides), [side // 2 for side in sides]
    pixels = [8 * side for side in sides]
    if name == "qwen_image":
        options |= {"encoder_hidden_states_mask": more[0] if more else None, "img_shapes": [(1, *grid)] * count}
        output = family.denoiser(hidden_states=tokens, **options)[0]
        return pipeline._unpack_latents(output, *pixels, 8)[:, :, 0]
    if name == "krea2":
        places = pipeline.prepare_position_ids(text.shape[1], *grid, noisy.device)
        options |= {"encoder_attention_mask": more[0], "position_ids": places}
        output = family.denoiser(hidden_states=tokens, **options)[0]
        return pipeline._unpack_latents(output, *pixels)[:, :, 0]
    places = pipeline._prepare_latent_image_ids(count, *grid, noisy.device, noisy.dtype)
    options |= {"img_ids": places, "txt_ids": torch.zeros(text.shape[1], 3)}
    if name == "flux":
        options |= {"guidance": torch.ones(count), "pooled_projections": more[0]}
    else:
        options["attention_mask"] = pipeline._prepare_attention_mask(count, tokens.shape[1], torch.bool, more[0].bool())
    return pipeline._unpack_latents(family.denoiser(hidden_states=tokens, **options)[0], *pixels, 8)


SENTENCES = ("chroma", "z_image", "flux2_klein", "qwen_image", "krea2", "anima")  # of which they read
PREDICTED = dict.fromkeys(("sd3", "sd3-5-medium", "flux"), (PROMPTS,))
PREDICTED |= dict.fromkeys(SENTENCES, ([""], ["a", "", "a red fox " * 300]))  # each text is read up to its own length


@pytest.mark.parametrize("kind", each(PREDICTED))
def test_prediction_loss_and_gradients_are_those_of_diffusers(bases: dict[str, Path], kind: str) -> None:
    """train_dreambooth_lora_sd3 (without preconditioning), _flux, _z_image of diffusers 58eb52c; Chroma's pipeline.

    Z-Image turns the time around, and so the direction. train_dreambooth_lora_flux2_klein is of diffusers 027e8ee,
    _qwen_image and _krea2 of 58eb52c.
    """
    for prompts in PREDICTED[kind]:
        check_prediction(load(bases[kind]), bases[kind], prompts)


def check_prediction(family: Family, base: Path, prompts: list[str]) -> None:
    count = len(prompts)
    made = settings(base, objective__timestep_sampling="logit-normal", training__text_encoder=False)
    adapter = families.attach(family, made.adapter, text_encoder=False, seed=0)
    disturb(adapter)
    conditioning = {key: row.float() for key, row in family.encode_prompts(prompts).items()}  # as they are stored
    conditioning["sizes"] = torch.zeros(count, 6)
    shape = (count, family.latent_shape[0], 8, 8)
    mean, std = torch.randn(shape, generator=generator(1)), torch.rand(shape, generator=generator(2))
    batch = Batch(mean, std, conditioning, tuple(prompts), count)
    ours = training_loss(family, adapter, batch, made, generator(3))
    gradients = torch.autograd.grad(ours, list(adapter.parameters()), allow_unused=True)

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
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    expected = torch.autograd.grad(theirs, list(adapter.parameters()), allow_unused=True)
    assert any(gradient is not None and gradient.any() for gradient in gradients)
    for own, other in zip(gradients, expected, strict=True):
        assert (own is None and other is None) or torch.allclose(own, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", each(SENTENCES))
def test_prompts_are_encoded_in_half_precision_as_diffusers_does(bases: dict[str, Path], kind: str) -> None:
    """Positions of tokens are computed, not loaded: rounded, they would be those of other places in a long text."""
    family = families.load(ModelConfig(base=str(bases[kind])), torch.device("cpu"), torch.bfloat16)
    theirs = fresh(bases[kind], torch_dtype=torch.bfloat16).text_encoder.base_model  # some have a last layer
    own, ids = family.pipeline().text_encoder, torch.arange(300).remainder(100)[None]
    with torch.no_grad():
        assert torch.equal(own(ids).last_hidden_state, theirs(ids).last_hidden_state)


@pytest.mark.parametrize(("kind", "side"), [("flux", 512), ("flux", 1024), ("z_image", 1024)])
def test_timesteps_are_shifted_as_the_pipeline_does_it(bases: dict[str, Path], kind: str, side: int) -> None:
    """That of FLUX.1 tells its scheduler the number of tokens in an image of this size."""
    family = load(bases[kind])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(family.pipeline().scheduler.config)
    sigmas = [0.9, 0.5, 0.1]
    scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift((side // 16) ** 2, 256, 4096, 0.5, 1.15))
    ours = family.noise.at(torch.tensor(sigmas), 0, 999, (1, 16, side // 8, side // 8))
    assert torch.allclose(ours, scheduler.timesteps, rtol=1e-5)


def drawn(pipeline: Any, family: Family, prompt: str, negative: str, guidance: float) -> Any:  # noqa: ANN401 - arrays
    """As diffusers' own pipeline draws: two count guidance from 0, Chroma's is given masks of truth values."""
    options: dict[str, Any] = {"prompt": prompt, "guidance_scale": guidance}
    if family.spec.name in ("z_image", "krea2"):
        options |= {"negative_prompt": negative, "guidance_scale": guidance - 1}
    if family.spec.name == "flux2_klein":
        options |= {"negative_prompt_embeds": own_embeddings(family, [negative])[0]}
    if family.spec.name == "qwen_image":
        options = {"prompt": prompt, "negative_prompt": negative, "true_cfg_scale": guidance}
    if family.spec.name == "chroma":
        del options["prompt"]
        for start, text in (("", prompt), ("negative_", negative)):
            embeddings, mask = own_embeddings(family, [text])
            options |= {f"{start}prompt_embeds": embeddings, f"{start}prompt_attention_mask": mask.bool()}
    rng = torch.Generator().manual_seed(1)
    if family.spec.name == "anima":
        pipeline.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=guidance))
        texts = {"prompt": prompt, "negative_prompt": negative, "output": "images"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transformer_cosmos, "transforms", RESIZING, raising=False)
            return np.asarray(pipeline(generator=rng, num_inference_steps=3, **SIZE, **texts)[0]).astype(int)
    with torch.no_grad():
        image = pipeline(generator=rng, num_inference_steps=3, **SIZE, **options).images[0]
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", each(SENTENCES))
def test_images_are_guided_by_a_negative_prompt(bases: dict[str, Path], kind: str) -> None:
    family, pipeline = load(bases[kind]), fresh(bases[kind])
    images = {}
    for negative, guidance in (("blurry", 4.0), ("", 4.0), ("blurry", 1.0)):
        drawing = {"prompt": "rin, smiling", "negative": negative, "steps": 3, "guidance": guidance, **SIZE}
        image = sampler.generate(family, PictureConfig(base=str(bases[kind]), out="x.png", **drawing))
        images[negative, guidance] = np.asarray(image).astype(int)
        expected = drawn(pipeline, family, "rin, smiling", negative, guidance)
        assert np.array_equal(images[negative, guidance], expected)
    assert not np.array_equal(images["blurry", 4.0], images["", 4.0])
    assert not np.array_equal(images["blurry", 4.0], images["blurry", 1.0])
    latents = family.generate_latents("rin, smiling", seed=1, steps=3, guidance=4.0, side=64)
    preserved = np.asarray(families.decode_latents(family, latents[None])[0]).astype(int)
    assert np.array_equal(preserved, images["", 4.0])


def as_of_ai_toolkit(peft: Path, scale: float) -> Path:
    """Save a file in the format of PEFT as ai-toolkit does, with an alpha as large as the rank."""
    tensors = {key.replace("transformer.", "diffusion_model."): value for key, value in load_file(peft).items()}
    file = peft.with_name("ai-toolkit.safetensors")
    save_file({key: value * (scale if "lora_B" in key else 1) for key, value in tensors.items()}, file)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd3-5-medium", "flux", *SENTENCES])
def test_the_files_do_what_the_adapter_did(character: Path, bases: dict[str, Path], kind: str) -> None:
    """The live adapter, the sampler with kohya's file and a fresh pipeline with each file give one image."""
    made = settings(bases[kind], export__precision="fp32", export__peft=True, **options_of(kind))
    run, family = runs.create(made), load(bases[kind])
    adapter = families.attach(family, made.adapter, text_encoder=bool(family.text_encoders), seed=0)
    disturb(adapter)
    picture = PictureConfig(base=str(bases[kind]), prompt="rin, smiling", steps=3, guidance=3.0, out="x.png", **SIZE)
    live = np.asarray(sampler.generate(family, picture)).astype(int)
    export.write(family, adapter, made, run, ["rin"], 1)
    keys = load_file(run.export).keys()
    assert all(key.startswith(("lora_unet_", "lora_te1_", "lora_te2_")) for key in keys)
    file, peft = reader.read(run.export), run.folder / "peft" / writer.PEFT_NAME
    assert file.family == family_of(kind)
    assert {(module.rank, module.alpha) for module in file.modules.values()} == {(4, 2.0)}, "joined, and apart again"
    assert all(key.startswith(("transformer.", "text_encoder.", "text_encoder_2.")) for key in load_file(peft))
    state = runs.look(run).state
    loads = {program: loads for program, loads, _words in state.verified[0].verdicts}
    assert loads["ComfyUI"], "for a base of no published size"
    assert loads["diffusers"] != any("diffusers does not apply this kind" in note for note in state.warnings)
    files = [peft]
    if kind in ("z_image", "flux2_klein", "qwen_image"):
        files += [run.export, as_of_ai_toolkit(peft, scale=0.5)]
    for path in files:
        for name, module in reader.read(path).modules.items():
            assert torch.allclose(module.delta(), file.modules[name].delta(), atol=1e-6)
    painter = sampler.Sampler()
    base = np.asarray(painter.generate(picture)).astype(int)
    adapted = picture.model_copy(update={"adapters": ((str(run.export), 1.0),)})
    assert np.abs(np.asarray(painter.generate(adapted)) - live).max() <= MOST
    assert np.abs(base - live).max() > MOST
    missing = {"text_encoder_3": None, "tokenizer_3": None} if kind == "sd3-5-medium" else {}
    for path in files:
        pipeline = fresh(bases[kind], **missing)
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        image = drawn(pipeline, family, "rin, smiling", "", 3.0)
        assert np.abs(image - live).max() <= (0 if path == peft else MOST)


def pair(name: str, rows: int, rank: int) -> dict[str, Tensor]:
    """A layer of sixteen inputs in kohya's format, with an alpha of two."""
    up, down = torch.randn(rows, rank), torch.randn(rank, 16)
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(2.0)}


def test_joined_and_swapped_layers_of_sd_scripts_are_read_as_diffusers_has_them() -> None:
    """The last modulations: sd-scripts trains them too, in the order of the original code."""
    name = "lora_unet_joint_blocks_2_context_block_adaLN_modulation_1"
    up, down, _alpha = (tensors := pair(name, 32, 2)).values()
    modules = reader.of_tensors(tensors, "x", writer.of_family("sd3", "flow")).modules
    (module,) = modules.values()
    assert torch.allclose(module.delta(), torch.cat([(up @ down)[16:], (up @ down)[:16]]))
    written = parse(writer.write(modules, {}, form="kohya", precision="fp32", family="sd3"))
    assert torch.equal(written[f"{name}.lora_up.weight"], up)
    # Trained unless told to split it: the parts share the first matrix.
    up, down, _alpha = (tensors := pair("lora_unet_joint_blocks_0_x_block_attn_qkv", 48, 4)).values()
    modules = reader.of_tensors(tensors, "x").modules
    parts = transformer_names.parts("transformer_blocks.0.attn.to_qkv", "sd3")
    deltas = [modules["lora_transformer_" + part.replace(".", "_")].delta() for part in parts]
    assert torch.allclose(torch.cat(deltas), 0.5 * up @ down, atol=1e-6)


OUTSIDE = {
    ("flux", "onetrainer"): {"ComfyUI", "Forge", "SD.Next"},
    ("flux", "joined"): {"ComfyUI", "Forge"},
    ("chroma", "dotted"): {"ComfyUI", "diffusers", "SD.Next"},
    ("flux2_klein", "joined"): {"ComfyUI"},
    ("qwen_image", "joined"): {"ComfyUI", "diffusers", "SD.Next"},
    ("qwen_image", "dotted"): {"ComfyUI", "InvokeAI", "diffusers", "SD.Next"},
    ("krea2", "joined"): {"ComfyUI", "InvokeAI", "SD.Next"},
    ("krea2", "dotted"): {"ComfyUI", "InvokeAI", "diffusers", "SD.Next"},
    ("z_image", "dotted"): {"ComfyUI", "InvokeAI", "diffusers", "SD.Next"},
    ("anima", "joined"): {"ComfyUI", "sd-scripts", "SD.Next"},
    ("anima", "dotted"): {"diffusers"},
    ("sd3", "joined"): {"ComfyUI", "Forge", "sd-scripts"},
}


@pytest.mark.parametrize(("family", "naming"), OUTSIDE)
@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters")
def test_layers_outside_the_blocks_are_layers(
    bases: dict[str, Path], tmp_path: Path, family: FamilyName, naming: str
) -> None:
    """OneTrainer trains them unless told otherwise, ai-toolkit and sd-scripts on request."""
    known = layer_shapes.of_folder(bases[family], family)
    shapes = {name.partition(":")[2]: shape for name, shape in known.items() if name.startswith("transformer:")}
    tensors, deltas = dict[str, Tensor](), dict[str, Tensor]()
    attention = (".0.attn.to_out.0", ".0.attn1.to_out.0", "layers.0.attention.to_out.0")
    for path in [path for path in shapes if not transformer_names.block(path) or path.endswith(attention)]:
        if naming == "joined" and path.startswith("distilled_guidance_layer"):  # at which diffusers stops
            continue
        original = transformer_names.original(path, family).replace(".", "_")
        down, up = torch.randn(2, *shapes[path][1:]), torch.randn(shapes[path][0], 2, *(1 for _ in shapes[path][2:]))
        if naming == "dotted":
            tensors |= {f"transformer.{path}.lora_A.weight": down, f"transformer.{path}.lora_B.weight": up}
        else:
            name = f"lora_unet_{original}" if naming == "joined" else f"lora_transformer_{path.replace('.', '_')}"
            parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2)}
            tensors |= {f"{name}.{ending}": part for ending, part in parts.items()}
        swapped = naming == "joined" and path in TRANSFORMERS[family].swapped
        delta = up.flatten(1) @ down.flatten(1)
        deltas[path] = delta.roll(len(delta) // 2, 0) if swapped else delta
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, writer.of_family(family, "flow"))
    modules = reader.read(file).modules
    for path, delta in deltas.items():
        assert torch.allclose(modules["lora_transformer_" + path.replace(".", "_")].delta(), delta, atol=1e-5)
    with families.patched(load(bases[family]), [(reader.read(file), 1.0)]):
        pass  # each fits a layer of the model
    verdicts = {verdict.program: verdict for verdict in compatibility.check(file, known).verdicts}
    assert {program for program, verdict in verdicts.items() if verdict.loads} == OUTSIDE[family, naming]
    if (family, naming) == ("flux", "joined"):
        assert verdicts["sd-scripts"].words == "loads, but differs: 2 of 11 layers are without effect"

    pipeline = fresh(bases[family])
    pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    for path, delta in deltas.items():
        layer = pipeline.transformer.get_submodule(path)
        adapted = hasattr(layer, "get_delta_weight")
        # Of OneTrainer's names it reads those of attention, so that its verdict on whole files is another.
        in_block = family != "sd3" and "blocks" in path
        if (family, naming) == ("flux2_klein", "joined"):
            in_block = not path.startswith(("norm_out", "double_stream", "single_stream"))
        in_block &= family not in ("krea2", "anima")  # of which it reads its own names
        assert adapted == (verdicts["diffusers"].loads or naming == "onetrainer" or in_block)
        assert not adapted or torch.allclose(layer.get_delta_weight("default_0").flatten(1), delta, atol=1e-5)


def of_t5(family: Family, prefix: str, rank: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA of all layers of T5 and of one in a block, with an alpha of half its rank, and its changes by path."""
    dotted, block = prefix.endswith("."), "transformer_blocks.0.attn.to_out.0"
    layers = dict(family.prompt_encoders()["t5xxl"].named_modules())
    layers = {path: layer for path, layer in layers.items() if isinstance(layer, torch.nn.Linear)}
    names = {path: f"{prefix}{path if dotted else path.replace('.', '_')}" for path in layers}
    names[block] = f"transformer.{block}" if dotted else f"lora_transformer_{block.replace('.', '_')}"
    layers[block] = family.denoiser.get_submodule(block)
    tensors, deltas = dict[str, Tensor](), dict[str, Tensor]()
    for number, (path, name) in enumerate(names.items()):
        (rows, columns), rng = layers[path].weight.shape, generator(number)
        down, up = torch.randn(rank, columns, generator=rng), torch.randn(rows, rank, generator=rng)
        parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(rank / 2)}
        tensors |= {f"{name}.{ending}": part for ending, part in parts.items()}
        deltas[path] = 0.5 * up @ down
    return tensors, deltas


@pytest.mark.parametrize(("family", "prefix"), [("sd3", "lora_te3_"), ("flux", "text_encoder_2.")])
def test_layers_of_t5_are_layers(bases: dict[str, Path], tmp_path: Path, family: FamilyName, prefix: str) -> None:
    """sd-scripts and OneTrainer train them on request, under names that `test_layer_names` has."""
    live, file = load(bases[family]), tmp_path / "x.safetensors"
    tensors, deltas = of_t5(live, prefix)
    save_file(tensors, file, writer.of_family(family, "flow"))
    adapter, t5 = reader.read(file), [path for path in deltas if path.startswith("encoder.")]
    before = {path: live.prompt_encoders()["t5xxl"].get_submodule(path).weight.clone() for path in t5}
    with families.patched(live, [(adapter, 0.5)]):
        for path, weight in before.items():
            change = live.prompt_encoders()["t5xxl"].get_submodule(path).weight - weight
            assert torch.allclose(change, 0.5 * deltas[path], atol=1e-5)
    baked = tmp_path / "baked"
    assert main(["bake", str(bases[family]), "--adapter", str(file), "--out", str(baked)]) == 0
    encoder = load(baked).prompt_encoders()["t5xxl"]
    for path, weight in before.items():
        assert torch.allclose(encoder.get_submodule(path).weight - weight, deltas[path], atol=1e-5)
    for form in ("kohya", "peft"):
        out = tmp_path / f"{form}.safetensors"
        assert main(["resize", str(file), "--rank", "1", "--to", form, "--precision", "fp32", "--out", str(out)]) == 0
        assert reader.read(out).modules.keys() == adapter.modules.keys()


def test_layers_of_t5_are_left_out_where_the_base_has_none(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = bases["sd3-5-medium"]
    file, alone = tmp_path / "x.safetensors", tmp_path / "alone.safetensors"
    tensors, _deltas = of_t5(load(bases["sd3"]), "lora_te3_")
    facts = writer.of_family("sd3", "flow")
    save_file(tensors, file, facts)
    save_file({key: tensor for key, tensor in tensors.items() if "lora_te3_" not in key}, alone, facts)
    sentence = "x.safetensors changes 7 layers of T5, which this base model does not have: they are left out."
    made = []
    for adapter in (file, alone):
        image, baked = tmp_path / f"{adapter.stem}.png", tmp_path / f"baked-{adapter.stem}"
        options = ["--prompt", "rin", "--steps", "1", "--adapter", str(adapter), "--out", str(image)]
        bake = ["bake", str(without), "--adapter", str(adapter), "--out", str(baked)]
        for command in (["sample", "--base", str(without), *options], bake):
            assert main(command) == 0
            assert (sentence in "".join(capsys.readouterr())) == (adapter == file)
        weights = baked / "transformer/diffusion_pytorch_model.safetensors"
        made.append((image.read_bytes()[-1000:], weights.read_bytes()))
    assert made[0] == made[1]


def test_what_makes_no_sense_is_refused_in_words(bases: dict[str, Path]) -> None:
    base = bases["sd3"]
    assert settings(base).objective.timestep_sampling == "logit-normal", "by its preset"
    for changes, words in (
        ({"objective": {"weighting": "min-snr"}}, "weights noise levels by how often it draws them"),
        ({"objective": {"noise_offset": 0.05}}, "trained from pure noise"),
        ({"model": {"base": str(base), "prediction_type": "v_prediction"}}, "does not predict that"),
        ({"adapter": {"targets": "conv"}}, "has no convolutions"),
        ({"model": {"base": str(bases["z_image"])}, "training": {"text_encoder": True}}, "takes no adapter; set it to"),
    ):
        with pytest.raises(UserError, match=words):
            config.build({"name": "x", "dataset": "x", "model": {"base": str(base)}, **changes})
    begun = {"objective": {"weighting": "min-snr"}, "record": {"base_sha256": "0" * 64}}
    config.build({"name": "x", "dataset": "x", "model": {"base": str(base)}, **begun})  # not looked at again
    with pytest.raises(UserError, match="does not predict 'epsilon'"):
        load(base, prediction_type="epsilon")
    family = load(base)
    with pytest.raises(UserError, match=r"Name blocks such as transformer_blocks\.0"):
        attached(family, base, adapter__blocks=["up_blocks"])
    options = {"adapter__blocks": ["transformer_blocks.1."], "adapter__targets": "attention"}
    adapter = attached(family, base, text_encoder=False, **options)
    assert adapter.layers
    assert all("transformer_blocks_1_attn" in name for name in adapter.layers)


def test_flux_is_told_the_guidance_that_is_set(bases: dict[str, Path]) -> None:  # model.guidance
    plain, guided = (load(bases["flux"], guidance=guidance) for guidance in (1.0, 3.5))
    heard = []
    guided.denoiser.register_forward_pre_hook(
        lambda _denoiser, _inputs, named: heard.append(named["guidance"].tolist()), with_kwargs=True
    )
    assert not torch.equal(answer(plain), answer(guided))
    assert heard == [[3.5, 3.5]]


QUANTIZED = {
    "sd3": r"transformer_blocks\.(?!.*\.norm)",
    "z_image": r".*\.(attention|feed_forward)\.",
    "flux2_klein": r"(single_)?transformer_blocks\.",
    "qwen_image": r"transformer_blocks\.",
    "krea2": r"(transformer_blocks|text_fusion\..*_blocks)\.",
    "anima": r"transformer_blocks\.\d+\.(attn1|attn2|ff)\.",
}


@pytest.mark.parametrize("family", QUANTIZED)
def test_blocks_take_fewer_bits_but_for_their_modulation(family: FamilyName) -> None:
    """Those of the published models, whose layers all fit the kernels."""
    folder = CONFIGS / family / "transformer"
    with torch.device("meta"):
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        transformer = getattr(diffusers, settings["_class_name"]).from_config(settings)
    linear = {path for path, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    chosen = {path for path, _layer in quantize._layers(transformer, FAMILIES[family].modules.quantized)}
    assert chosen == {path for path in linear if re.match(QUANTIZED[family], path)} != set()


def test_text_encoders_may_be_in_files_beside_a_single_file(
    bases: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    file = single_file.write_apart(bases["sd3"], tmp_path / "base.safetensors")
    family = load(file)
    assert torch.equal(answer(family), answer(load(bases["sd3"])))
    assert "t5xxl" in family.encoders()
    (tmp_path / "clip_g_fp16.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no second text encoder.*clip_g\.safetensors, into the same folder"):
        load(file)
    shutil.copy(tmp_path / "clip_l_fp16.safetensors", tmp_path / "clip_g.safetensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(file)


def test_t5_is_read_from_a_file_of_its_own(bases: dict[str, Path], tmp_path: Path) -> None:
    """Its words are there under either name; something missing is named."""
    tensors = load_file(next((bases["flux"] / "text_encoder_2").glob("*.safetensors")))
    file, folder = tmp_path / "t5xxl.safetensors", bases["flux"] / "text_encoder_2"
    save_file(tensors, file)
    large = FAMILIES["flux"].large_encoder
    assert large
    own = text_encoders.large(file, large, folder, torch.float32)
    theirs = load(bases["flux"]).encoders()["t5xxl"]
    assert all(torch.equal(own.state_dict()[key], value) for key, value in theirs.state_dict().items())
    tensors.pop("encoder.final_layer_norm.weight")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"t5xxl.safetensors has no encoder.final_layer_norm.weight"):
        text_encoders.large(file, large, folder, torch.float32)


PACKED = ("z_image", "flux2_klein", "qwen_image", "krea2", "anima")


def test_texts_are_cut_behind_the_longest() -> None:
    text = torch.rand(2, 5, 4, generator=generator(0))
    cut = without_padding({"text": text, LENGTHS: torch.tensor([1.0, 3.0])})
    assert cut.keys() == {"text"}
    assert torch.equal(cut["text"], text[:, :3])
    assert without_padding({"text": text})["text"] is text


def test_a_single_file_of_turbo_is_known_by_its_name(
    bases: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    """Of Krea 2, whose pipeline has other noise levels for it."""
    for name, is_turbo in (("krea2_turbo_bf16", True), ("krea2_raw_bf16", False)):
        family = load(single_file.write(bases["krea2"], tmp_path / f"{name}.safetensors"))
        assert family.pipeline().config.is_distilled == is_turbo
        kind = family.base.few_step
        assert (kind and (kind.steps, kind.guidance)) == ((8, 1.0) if is_turbo else None)


def test_texts_are_kept_without_their_padding(character: Path, bases: dict[str, Path]) -> None:
    """Of the 512 tokens that Qwen-Image reads most are padding, as long as captions are short."""
    family, config = load(bases["qwen_image"]), settings(bases["qwen_image"], training__text_encoder=False)
    built = encode.build(family, dataset.read(character, "rin"), config, lambda *_: None)
    rows = {text: built.cache.get(file) for text, file in built.conditioning.items()}
    assert all(len(row["text"]) == row[LENGTHS] < 512 for row in rows.values())
    assert len({len(row["text"]) for row in rows.values()}) > 1
    batch = built.at(0, 0)
    text = batch.conditioning["text"]  # filled up to the longest
    assert text.shape[1] == batch.conditioning[LENGTHS].max()
    with torch.no_grad():
        assert torch.equal(text, family.encode_prompts(batch.captions)["text"][:, : text.shape[1]])


def test_a_folder_is_read_without_layers_that_nothing_uses(bases: dict[str, Path], tmp_path: Path) -> None:
    """The text encoder of FLUX.2 klein is published with a last layer, which is damaged here."""
    folder = shutil.copytree(bases["flux2_klein"], tmp_path / "base")
    (file,) = (folder / "text_encoder").glob("*.safetensors")
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": torch.full((3, 3), torch.nan)}, file)
    family = load(folder)
    assert type(family.encoders()["qwen_3_4b"]).__name__ == "Qwen3Model"
    assert torch.equal(answer(family), answer(load(bases["flux2_klein"])))
    save_file({key: value for key, value in tensors.items() if not key.endswith("norm.weight")}, file)
    with pytest.raises(UserError, match=r"text_encoder has no layers\.0\.input_layernorm\.weight"):
        load(folder)


def test_tokens_are_counted_beside_those_of_the_chat(bases: dict[str, Path]) -> None:
    family = load(bases["z_image"])
    tokens, most = family.count_tokens("a red fox")
    assert family.encode_prompts(["a red fox", ""])[LENGTHS].tolist() == [tokens + 512 - most, 512 - most]


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


def test_latents_of_a_video_vae_are_those_of_the_script(bases: dict[str, Path]) -> None:
    """Of Qwen-Image, in one piece; an image of several tiles is nearly the same in tiles."""
    family, pixels = load(bases["qwen_image"]), torch.rand(1, 3, 64, 64, generator=generator(1)) * 2 - 1
    vae = family.pipeline().vae
    center, spread = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        theirs = (vae.encode(pixels[:, :, None]).latent_dist.mode() - center) * (1 / spread)
        mean, std = families.encode_images(family, pixels)
        assert torch.allclose(mean, theirs[:, :, 0], atol=1e-5)
        assert (std > 0).all()
        decoded = vae.decode(theirs / (1 / spread) + center).sample[:, :, 0]
        assert torch.allclose(family.decode_latents(mean, tiled=False), decoded, atol=1e-5)
        large = pixels.repeat(1, 1, 9, 9)
        whole, tiles = (family.encode_latents(large, torch.float32, tiled=tiled)[0] for tiled in (False, True))
        assert 0 < (whole - tiles).norm() < 0.05 * whole.norm()


@pytest.mark.parametrize("kind", PACKED)
def test_a_size_is_one_of_whole_tokens(bases: dict[str, Path], kind: str) -> None:
    odd = PictureConfig(base=str(bases[kind]), prompt="rin", steps=1, out="x.png", width=72, height=64)
    assert sampler.generate(load(bases[kind]), odd).size == (64, 64)


READS = {"z_image": ("lycoris_", {"ComfyUI", "SD.Next"}), "flux2_klein": ("lora_transformer_", {"ComfyUI"})}
READS |= {"qwen_image": ("lora_unet_", {"ComfyUI", "InvokeAI"}), "krea2": ("lora_unet_", {"ComfyUI", "SD.Next"})}
READS["anima"] = ("lora_unet_", {"ComfyUI", "InvokeAI", "SD.Next"})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("z_image", Lora(rank=2, dora=True)),
        ("flux2_klein", LoHa(rank=2)),
        ("z_image", LoKr(rank=2)),
        ("qwen_image", LoKr(rank=2)),
        ("krea2", LoHa(rank=2)),
        ("anima", LoKr(rank=2)),
    ],
    ids=["DoRA", "LoHa", "LoKr", "LoKr of Qwen-Image", "LoHa of Krea 2", "LoKr of Anima"],
)
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
