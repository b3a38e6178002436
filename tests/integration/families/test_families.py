"""Each family of base models, on tiny real ones: found, loaded, trained, resumed and exported the same way."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.integration.training.test_train import assert_resumes, cases, finished, losses, mute, same, settings
from tests.single_file import write
from trainer import config, families, runs
from trainer.adapter_files import reader, writer
from trainer.base_models import detect, name_hints
from trainer.config import ModelConfig, PictureConfig
from trainer.config.adapter import LoHa, LoKr, Lora
from trainer.data import buckets, dataset
from trainer.errors import UserError
from trainer.families import Adapter, Family, prediction_probe
from trainer.rng import generator
from trainer.sampling import sampler
from trainer.training import encode, prediction_type

UNETS = ("sd15", "sd21", "sd21-v", "sdxl")
TRANSFORMERS = ("sd3", "sd3-5-medium", "flux", "chroma", "z_image", "flux2_klein")
KINDS = (*UNETS, *TRANSFORMERS)
# Their pipelines know no smaller size than that of the real ones; T5 and Qwen3 take no adapter.
SMALL: dict[str, dict[str, Any]] = {
    "flux": {"preview__prompts": ["rin --w 64 --h 64"]},
    "chroma": {"preview__prompts": ["rin --w 64 --h 64"], "training__text_encoder": False},
    "z_image": {"preview__prompts": ["rin --w 64 --h 64"], "training__text_encoder": False},
    "flux2_klein": {"preview__prompts": ["rin --w 64 --h 64"], "training__text_encoder": False},
}
CPU = torch.device("cpu")


def family_of(kind: str) -> str:
    return kind.partition("-")[0]


def load(base: Path, **model: Any) -> Family:  # noqa: ANN401 - any settings
    return families.load(ModelConfig(base=str(base), **model), CPU, torch.float32)


def question(family: Family) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    noisy = torch.randn(2, family.latent_shape[0], 8, 8, generator=generator(1))
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64], [1023.0, 700, 3, 5, 64, 64]])
    return noisy, torch.tensor([10, 900]), {**family.encode_prompts(["rin, smiling", ""]), "sizes": sizes}


def take(adapter: Adapter, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, layer in adapter.layers.items():
            for role, parameter in layer.trained().items():
                parameter.copy_(tensors[f"{name}.lora_{role}.weight"])


def answer(family: Family) -> Tensor:
    with torch.no_grad():
        return family.predict(*question(family))


def test_linear_adapters_without_dora_consist_of_matrices(bases: dict[str, Path]) -> None:
    """Muon trains nothing else, and is offered for these only."""
    family = load(bases["sd15"])
    for adapter in (Lora(rank=4), LoHa(rank=4), LoKr(rank=4), LoKr(rank=64)):
        attached = families.attach(family, adapter, text_encoder=True, seed=0)
        assert {parameter.ndim for parameter in attached.parameters()} == {2}
        attached.detach()


# By kind: its architecture and version, as programs name them.
KNOWN_AS = {
    "sd15": ("stable-diffusion-v1/lora", "sd_v1"),
    "sd21": ("stable-diffusion-v2-512/lora", "sd_v2_512"),
    "sd21-v": ("stable-diffusion-v2-768-v/lora", "sd_v2_768_v"),
    "sdxl": ("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
    "sd3": ("stable-diffusion-3-m/lora", "sd3"),
    "flux": ("flux-1-dev/lora", "flux1"),
    "chroma": ("chroma/lora", "chroma"),
    "z_image": ("Z-Image/lora", "zimage"),
    "flux2_klein": ("Flux.2-klein-4b/lora", "flux2_klein_4b"),
    "sd3-5-medium": ("stable-diffusion-3-5-medium/lora", "sd3"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_known_by_its_settings_or_refused(bases: dict[str, Path], kind: str) -> None:
    base = detect.look(bases[kind])
    usual = "flow" if kind in TRANSFORMERS else "epsilon"
    predicts = "v_prediction" if kind == "sd21-v" else usual
    assert (base.family, base.prediction_type, base.zero_snr) == (family_of(kind), predicts, False)
    family = load(bases[kind], family=family_of(kind))
    assert (family.base.family, family.noise.prediction_type) == (family_of(kind), predicts)
    facts = writer.of_family(family.base.family, predicts, family.base.size)
    assert (facts["modelspec.architecture"], facts["ss_base_model_version"]) == KNOWN_AS[kind]
    if kind in UNETS:
        names = {"epsilon": "epsilon", "v_prediction": "v"}
        assert facts["modelspec.prediction_type"] == names[predicts]
        assert facts["ss_v2"] == str(kind.startswith("sd21"))
    other = "sdxl" if kind != "sdxl" else "sd15"
    words = r"is (Stable Diffusion|FLUX|Chroma|Z-Image).*, but the settings say .*Set the family to 'auto'"
    with pytest.raises(UserError, match=words):
        load(bases[kind], family=other)


# Diffusers knows the real width of FLUX and Chroma alone.
@pytest.mark.parametrize(
    "kind", cases([kind for kind in KINDS if kind not in ("flux", "chroma")], pytest.mark.slow, ["sdxl"])
)
def test_a_single_file_is_the_folder(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, kind: str) -> None:
    marks = ("v_pred",) if kind == "sd21-v" else ()
    metadata = {"modelspec.prediction_type": "epsilon"} if kind == "sd21" else None
    file = write(bases[kind], tmp_path / "base.safetensors", marks=marks, metadata=metadata)
    assert detect.look(file).family == family_of(kind)
    folder, single = load(bases[kind]), load(file)
    assert single.noise.prediction_type == folder.noise.prediction_type
    assert torch.equal(answer(single), answer(folder))
    pixels = torch.rand(1, 3, 64, 64, generator=generator(2)) * 2 - 1
    encoded = [torch.cat(families.encode_images(family, pixels)) for family in (single, folder)]
    assert torch.equal(*encoded)
    if kind in UNETS:
        assert torch.equal(alphas(single), alphas(folder))
    assert single.base.size == folder.base.size
    assert sampler.native_side(single) == {"sd21-v": 96, "z_image": 1024, "flux2_klein": 1024}.get(kind, 64)
    assert single.spec == folder.spec


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


# By kind: the losses of six steps that train both the UNet and the text encoders, with preservation.
CURVES = {
    "sd15": [1.08276, 1.102173, 1.063543, 1.103795, 1.113519, 1.089006],
    "sd21": [1.032132, 1.078294, 1.058237, 1.069323, 1.094465, 1.08046],
    "sd21-v": [0.3818188, 0.3615885, 0.4085712, 0.5839075, 0.5502514, 0.7842969],
    "sdxl": [1.07138, 1.103865, 1.12967, 1.070911, 1.183797, 1.060231],
    "sd3": [4.149623, 4.200058, 4.207041, 4.19533, 4.125912, 4.163121],
    "flux": [1.572104, 1.560171, 1.595593, 1.590008, 1.571191, 1.559451],
    "flux2_klein": [3.031965, 3.030524, 3.044122, 2.9949, 2.968776, 3.010396],
    "z_image": [1.471128, 1.477036, 1.483862, 1.485925, 1.471291, 1.479084],
    "chroma": [1.614089, 1.628917, 1.593057, 1.573405, 1.557968, 1.5437],
    "sd3-5-medium": [4.077464, 4.184826, 4.145877, 4.162012, 4.153721, 4.144662],
}


@pytest.mark.parametrize("kind", cases(KINDS, pytest.mark.slow, ["sd15"]))
def test_the_loss_curve_is_the_stored_one(character: Path, bases: dict[str, Path], kind: str) -> None:
    options = {"training__text_encoder": True, "preservation__share": 0.25, "preservation__noise_from": 0.0}
    options["preservation__prompts"] = [""]
    run = finished(bases[kind], **(options | SMALL.get(kind, {})))
    curve = [loss for _, loss in sorted(losses(run).items())]
    assert curve == pytest.approx(CURVES[kind], rel=1e-5)


@pytest.mark.slow
def test_a_run_of_flux_resumes(character: Path, bases: dict[str, Path]) -> None:
    """With its text encoders, in bf16."""
    options = {"training__text_encoder": True, "training__precision": "bf16", **SMALL["flux"]}
    assert_resumes(settings(bases["flux"], training__steps=3, **options), 1)


@pytest.mark.parametrize("pair", ["sd15 sd21", "flux sd3"])
def test_an_adapter_of_another_family_is_refused(bases: dict[str, Path], tmp_path: Path, pair: str) -> None:
    trained, tried = pair.split()
    adapter = families.attach(load(bases[trained]), Lora(rank=4), text_encoder=True, seed=0)
    save_file(adapter.tensors(), tmp_path / "x.safetensors")
    adapters = ((str(tmp_path / "x.safetensors"), 1.0),)
    picture = PictureConfig(base=str(bases[tried]), adapters=adapters, prompt="rin", steps=1, out="x.png")
    words = r"does not fit the base model|has a different size in the base model|The base model has no"
    with pytest.raises(UserError, match=words):
        sampler.Sampler().generate(picture)


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
    """Train the whole tiny UNet for a moment to predict velocities."""
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
    assert torch.equal(alphas(load(base)), alphas(load(bases["sdxl"]))), "it is trained as the original is"


def test_images_are_those_of_diffusers(tiny_sd: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny_sd, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
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
    for clip_skip in (1, 2, 1):
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
    other = finished(bases["sd21-v"], training__steps=1)
    assert other.config().record.prediction_type == "read from its scheduler's config"
