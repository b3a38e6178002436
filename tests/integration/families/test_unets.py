"""Stable Diffusion with a UNet alone: prediction types, zero terminal SNR, clip skip, the sizes of XL.

And what is said of a model that lacks what its family names.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.integration.families.models import CPU, answer, fresh, load, question
from tests.integration.training.test_train import finished, losses, mute, same, settings
from tests.single_file import write
from trainer import config, families, runs
from trainer.adapter_files import reader
from trainer.base_models import detect, name_hints
from trainer.base_models.registry import FAMILIES
from trainer.base_models.spec import Modules
from trainer.config import PictureConfig
from trainer.config.adapter import LoHa, LoKr, Lora
from trainer.data import buckets, dataset
from trainer.errors import UserError
from trainer.families import Family
from trainer.families.files import loading
from trainer.families.hardware import gradient_checkpointing
from trainer.families.hardware.quantize import quantize
from trainer.rng import generator
from trainer.sampling import prediction_probe, sampler
from trainer.training import prediction_type
from trainer.training.inputs import encode


def test_linear_adapters_without_dora_consist_of_matrices(bases: dict[str, Path]) -> None:
    """Muon trains nothing else, and is offered for these only."""
    family = load(bases["sd15"])
    for adapter in (Lora(rank=4), LoHa(rank=4), LoKr(rank=4), LoKr(rank=64)):
        attached = families.attach(family, adapter, text_encoder=True, seed=0)
        assert {parameter.ndim for parameter in attached.parameters()} == {2}
        attached.detach()


def test_xl_is_asked_as_diffusers_asks_it(bases: dict[str, Path]) -> None:
    family = load(bases["sdxl"])
    prompt, _, pooled, _ = family.pipeline().encode_prompt("rin, smiling", do_classifier_free_guidance=False)
    own = family.encode_prompts(["rin, smiling"])
    assert torch.equal(own["text"], prompt)
    assert torch.equal(own["pooled"], pooled)
    noisy, timesteps, conditioning = question(family)
    with torch.no_grad():
        plain = family.predict(noisy, timesteps, conditioning)
        moved = family.predict(noisy, timesteps, {**conditioning, "sizes": conditioning["sizes"] + 9})
    assert not torch.equal(plain, moved)
    with pytest.raises(KeyError, match="sizes"):
        family.predict(noisy, timesteps, family.encode_prompts(["a", "b"]))


def test_sizes_are_those_of_the_picture_and_its_crop(home: Path, bases: dict[str, Path]) -> None:
    folder = home / "datasets" / "wide"
    folder.mkdir()
    Image.new("RGB", (300, 200), "red").save(folder / "a.png")
    family, examples = load(bases["sdxl"]), dataset.read(folder, "rin")
    wide, high = buckets.bucket(300, 200, 128)
    for text_encoder in (False, True):
        options = {"training__batch_size": 1, "training__text_encoder": text_encoder}
        made = settings(bases["sdxl"], training__resolution=128, **options)
        batch = encode.build(family, examples, made, mute).at(0, 0)
        scale = max(wide / 300, high / 200)
        top, left = (max(high, round(200 * scale)) - high) // 2, (max(wide, round(300 * scale)) - wide) // 2
        assert (batch.sizes.tolist(), batch.conditioning is None) == ([[200, 300, top, left, high, wide]], text_encoder)
        if batch.conditioning:
            assert torch.equal(batch.conditioning["sizes"], batch.sizes)


@pytest.mark.slow
def test_a_base_from_the_hub_is_pinned(
    character: Path, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's cache keeps it, so that no network is needed."""
    commit, cached = "0123456789" * 4, tmp_path / "models--owner--name"
    shutil.copytree(bases["sdxl"], cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    made = config.build({"name": "rin", "dataset": "rin", "model": {"base": "owner/name"}})
    assert made.training.resolution == 1024, "the preset is that of its family"
    run = finished(Path("owner/name"), training__steps=1)
    assert (run.config().model.family, run.config().model.revision) == ("sdxl", commit)
    assert 'base = "owner/name"' in reader.read(run.export).metadata["limner.config"]


def test_zero_terminal_snr_is_read_from_the_base(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    file = write(bases["sdxl"], tmp_path / "base.safetensors", marks=("v_pred", "ztsnr"))
    family = load(file)
    assert (family.base.prediction_type, float(alphas(family)[-1])) == ("v_prediction", 0)
    assert float(alphas(family)[0]) > 0.99
    assert family.pipeline().scheduler.config.timestep_spacing == "trailing"
    # A folder that predicts noise keeps the usual schedule.
    base = shutil.copytree(bases["sd15"], tmp_path / "base")
    file = base / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_betas_zero_snr": True}))
    family = load(base)
    assert torch.equal(alphas(family), alphas(load(bases["sd15"])))
    assert torch.equal(family.pipeline().scheduler.alphas_cumprod, alphas(family))
    family.set_prediction_type("v_prediction")
    assert float(alphas(family)[-1]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_is_marked_trains_and_draws_with_finite_numbers(
    character: Path, bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, kind: str
) -> None:
    """At zero terminal SNR, min-SNR would divide zero by zero for a base that predicts noise."""
    file = write(bases["sd15"], tmp_path / "base.safetensors", marks=("ztsnr",))
    late = {"objective__min_timestep": 999, "objective__weighting": "min-snr", "training__steps": 2}
    run = finished(file, model__prediction_type=kind, preview__every=2, **late)
    assert all(np.isfinite(loss) for loss in losses(run).values())
    pixels = np.asarray(Image.open(run.folder / "previews" / "000002_0.png"))
    assert pixels.std() > 1
    metadata = reader.read(run.export).metadata
    assert metadata["ss_zero_terminal_snr"] == str(kind == "v_prediction")
    assert metadata["ss_sd_model_name"] == "base.safetensors"


def alphas(family: Family) -> torch.Tensor:
    return family.noise.alphas_cumprod


def teach(family: Family, latents: Tensor) -> None:
    family.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(family.denoiser.parameters(), lr=5e-3)
    conditioning = family.encode_prompts([""] * len(latents))
    for step in range(60):
        rng = generator(step)
        noise = torch.randn(latents.shape, generator=rng)
        timesteps = torch.randint(1000, (len(latents),), generator=rng)
        alpha = alphas(family)[timesteps].view(-1, 1, 1, 1)
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        (family.predict(noisy, timesteps, conditioning) - target).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
def test_a_base_that_does_not_say_is_asked(
    character: Path, bases: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    kind = "v_prediction"  # which is not what is taken without asking
    file = write(bases["sd21"], tmp_path / "base.safetensors")
    assert detect.look(file).prediction_type is None
    family = load(file)
    examples = dataset.read(character, "rin")
    batch = encode.build(family, examples, settings(file), mute).at(0, 0)
    teach(family, batch.mean)
    run = runs.create(settings(file))
    made = prediction_type.resolve(run.config(), family, batch, run)
    assert family.noise.prediction_type == made.model.prediction_type == kind
    assert family.pipeline().scheduler.config.prediction_type == kind
    assert "mean error" in made.record.prediction_type
    assert run.config() == made
    assert prediction_type.resolve(made, family, batch, run) == made
    # Without pictures of a data set, a grey one is enough.
    family.set_prediction_type("epsilon")
    prediction_probe.probe_with_gray(family)
    assert family.noise.prediction_type == kind


def test_a_folder_may_have_files_of_the_fp16_variant(bases: dict[str, Path], tmp_path: Path) -> None:
    """That of the UNet, or all of them."""
    expected = answer(load(bases["sd15"]))
    for number, parts in enumerate(("unet", "*")):
        folder = shutil.copytree(bases["sd15"], tmp_path / str(number))
        for file in folder.glob(f"{parts}/*.safetensors"):
            file.rename(file.with_suffix(".fp16.safetensors"))
        assert torch.equal(answer(load(folder)), expected), parts


def test_weights_that_are_not_finite_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    for part in ("unet", "text_encoder", "vae"):
        folder = shutil.copytree(bases["sd15"], tmp_path / part / "base")
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        next(value for key, value in tensors.items() if key.endswith("weight")).view(-1)[3] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=rf"'base' are damaged: {part}\..* has values that are not finite"):
            load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("title", ["LCM", "Lightning"])
def test_a_distilled_base_is_sampled_as_its_authors_do(bases: dict[str, Path], tmp_path: Path, title: str) -> None:
    (kind,) = [kind for kind in name_hints.FEW_STEP_KINDS if kind.title == title]
    base = shutil.copytree(bases["sdxl"], tmp_path / f"base_{title}")
    pipeline = fresh(base)
    scheduler = getattr(diffusers, kind.scheduler)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **kind.scheduler_options)
    options = {"negative_prompt": "", "num_inference_steps": kind.steps, "guidance_scale": kind.guidance}
    expected = pipeline("rin", generator=torch.Generator().manual_seed(1), **options).images[0]
    preview = config.build({"name": "x", "dataset": "x", "model": {"base": str(base)}}).preview
    request = PictureConfig(base=str(base), prompt="rin", steps=preview.steps, guidance=preview.guidance, out="x.png")
    image = np.asarray(sampler.Sampler().generate(request))
    assert np.array_equal(image, np.asarray(expected))
    original = sampler.Sampler().generate(request.model_copy(update={"base": str(bases["sdxl"])}))
    assert not np.array_equal(image, np.asarray(original))
    assert torch.equal(alphas(load(base)), alphas(load(bases["sdxl"]))), "it is trained as the original is"


def test_images_are_those_of_diffusers(tiny_sd: Path) -> None:
    pipeline = fresh(tiny_sd)
    if not hasattr(pipeline.text_encoder, "text_model"):  # diffusers asks for it, transformers 5 has it no more
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    negative = pipeline.encode_prompt("hat", CPU, 1, False, clip_skip=1)[0]
    drawing = {"prompt": "rin", "negative": "hat", "steps": 3, "guidance": 3.0, "clip_skip": 2}
    request = PictureConfig(base=str(tiny_sd), out="x.png", **drawing)
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
    options: dict[str, Any] = {"training__text_encoder": True, "export__precision": "fp32"}
    options |= {"training__steps": 4, "preview__every": 4}
    run, usual = (finished(tiny_sd, model__clip_skip=clip_skip, **options) for clip_skip in (2, 1))
    assert losses(run) != losses(usual)
    file = reader.read(run.export)
    assert (file.metadata["ss_clip_skip"], reader.read(usual.export).metadata["ss_clip_skip"]) == ("2", "1")
    layers = {name.split("_layers_")[1][0] for name in file.modules if name.startswith("lora_te_")}
    assert layers == {"0"}

    def generate(adapter: Path) -> np.ndarray[Any, Any]:
        options = {"adapters": ((str(adapter), 1.0),), "steps": 2, "clip_skip": 2}
        request = PictureConfig(base=str(tiny_sd), prompt="rin", out="x.png", **options)
        return np.asarray(sampler.Sampler().generate(request)).astype(int)

    with Image.open(run.folder / "previews" / "000004_0.png") as image:
        preview = np.asarray(image).astype(int)
        assert json.loads(image.text["limner"])["clip_skip"] == 2
    assert np.abs(generate(run.export) - preview).max() <= 1, "rounded otherwise"
    assert np.abs(generate(usual.export) - preview).max() > 1


def test_cached_embeddings_are_kept_apart(character: Path, tiny_sd: Path) -> None:
    examples = dataset.read(character, "rin")
    for clip_skip in (1, 2):
        family = load(tiny_sd, clip_skip=clip_skip)
        batches = encode.build(family, examples, settings(tiny_sd, model__clip_skip=clip_skip), mute)
        prompt = sorted(batches.conditioning)[-1]
        stored = batches.cache.get(batches.conditioning[prompt])["text"]
        assert torch.equal(stored, family.encode_prompts([prompt])["text"][0])


@pytest.mark.slow
def test_what_is_said_is_not_asked_and_clip_skip_ignored(character: Path, bases: dict[str, Path]) -> None:
    """Of a base that is no Stable Diffusion 1.x."""
    options = {"model__prediction_type": "v_prediction", "training__steps": 2}
    run, usual = (finished(bases["sd21"], model__clip_skip=clip_skip, **options) for clip_skip in (2, 1))
    assert same(load_file(run.export), load_file(usual.export))
    assert any("Clip skip is ignored" in warning for warning in runs.look(run).state.warnings)
    assert not any("Clip skip" in warning for warning in runs.look(usual).state.warnings)
    assert (run.config().model.clip_skip, reader.read(run.export).metadata["ss_clip_skip"]) == (1, "None")
    assert (run.config().model.family, run.config().model.prediction_type) == ("sd21", "v_prediction")
    assert run.config().record.prediction_type == "as set"
    assert reader.read(run.export).metadata["ss_base_model_version"] == "sd_v2_768_v"


def test_what_a_model_does_not_have_is_said(tiny_sd: Path) -> None:
    """Of a model whose family has other names for its blocks."""
    pytest.importorskip("bitsandbytes")
    family, elsewhere = load(tiny_sd), Modules(("levels",), ("mlp",), ("levels",))
    assert family.spec.unet
    family.spec = replace(family.spec, unet=replace(family.spec.unet, modules=elsewhere))
    with pytest.raises(UserError, match=r"no blocks to compute twice under the names that Stable Diffusion 1\.x"):
        gradient_checkpointing.recompute(family, "half")
    with pytest.raises(UserError, match="no blocks whose weights could wait"):
        gradient_checkpointing.recompute(family, "off", "half")
    with pytest.raises(UserError, match="no layers to quantize"):
        quantize(family.denoiser, "nf4", family.spec.modules.quantized, family.spec.title)
    gradient_checkpointing.recompute(family, "off")


def test_a_large_text_encoder_may_be_of_any_class(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes fewer bits with the denoiser, and is never in fp16."""
    pytest.importorskip("bitsandbytes")
    t5 = FAMILIES["flux"].large_encoder
    assert t5
    named = {"component": "text_encoder", "tokenizer": "tokenizer", "file_name": "clip", "blocks": "layers"}
    large = replace(t5, model="CLIPTextModel", **named)
    monkeypatch.setitem(FAMILIES, "sd15", replace(FAMILIES["sd15"], text_encoders=(), large_encoder=large))
    base = detect.look(tiny_sd)
    assert loading.load_pipeline(tiny_sd, base, None, torch.float16).text_encoder.dtype == torch.bfloat16
    layers = loading.load_pipeline(tiny_sd, base, None, torch.float32).text_encoder
    quantize(layers, "nf4", (large.blocks,), "x")
    changed = {path for path, layer in layers.named_modules() if type(layer).__name__ == "Linear4bit"}
    assert changed
    assert all(".layers." in path for path in changed)


def test_a_text_encoder_that_takes_no_adapter_is_not_trained(tiny_sd: Path) -> None:
    family = load(tiny_sd)
    family.text_encoders = {}
    with pytest.raises(UserError, match=r"The text encoder of Stable Diffusion 1\.x takes no adapter"):
        families.attach(family, settings(tiny_sd).adapter, text_encoder=True, seed=0)


def test_steps_of_a_beta_distribution_are_even_here(bases: dict[str, Path], tmp_path: Path) -> None:
    """SciPy, which they need, is not among what Limner needs."""
    folder = shutil.copytree(bases["flux"], tmp_path / "base")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_beta_sigmas": True}))
    expected, config = (load(path).pipeline().scheduler.config for path in (bases["flux"], folder))
    assert {**config, "_use_default_values": 0} == {**expected, "_use_default_values": 0}
