"""Each family of base models, on tiny real ones: found, loaded, trained, resumed and exported the same way."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.integration.training.test_train import finish, losses, quiet, same, settings
from tests.single_file import block_names, unet_name, write
from trainer import config, families, runs
from trainer.adapter_files import reader, writer
from trainer.base_models import detect
from trainer.config import ModelConfig, PictureConfig
from trainer.config.adapter import LoHa, LoKr, Lora
from trainer.data import buckets, dataset
from trainer.errors import UserError
from trainer.families import Adapter, Family, prediction_probe
from trainer.families.noise import DiscreteNoise
from trainer.rng import generator
from trainer.runs import Run, events
from trainer.sampling import sampler
from trainer.train import train
from trainer.training import encode, export, prediction_type
from trainer.training.loss import training_loss

UNETS = ("sd15", "sd21", "sd21-v", "sdxl")
TRANSFORMERS = ("sd3", "sd3-5-medium", "flux")
KINDS = (*UNETS, *TRANSFORMERS)
# The pipeline of FLUX knows no smaller size than that of the real one.
SMALL: dict[str, dict[str, Any]] = {"flux": {"preview__prompts": ["rin --w 64 --h 64"]}}
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


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_adapters_without_dora_and_convolutions_consist_of_matrices(bases: dict[str, Path], kind: str) -> None:
    """Muon trains nothing else, and is offered for these only."""
    for adapter in (Lora(rank=4), Lora(rank=4, rslora=True), LoHa(rank=4), LoKr(rank=4), LoKr(rank=64)):
        attached = families.attach(load(bases[kind]), adapter, text_encoder=True, seed=0)
        assert {parameter.ndim for parameter in attached.parameters()} == {2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_known_by_its_settings(bases: dict[str, Path], kind: str) -> None:
    found = detect.look(bases[kind])
    assert found.family == family_of(kind)
    usual = "flow" if kind in TRANSFORMERS else "epsilon"
    assert found.prediction_type == ("v_prediction" if kind == "sd21-v" else usual)
    assert not found.zero_snr
    assert load(bases[kind]).noise.prediction_type == found.prediction_type


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "flux"])  # diffusers knows its real width alone
def test_a_single_file_is_the_folder(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, kind: str) -> None:
    marks = ("v_pred",) if kind == "sd21-v" else ()
    metadata = {"modelspec.prediction_type": "epsilon"} if kind == "sd21" else None
    file = write(bases[kind], tmp_path / "base.safetensors", marks=marks, metadata=metadata)
    assert detect.look(file).family == family_of(kind)
    folder, single = load(bases[kind]), load(file)
    assert single.noise.prediction_type == folder.noise.prediction_type
    assert torch.equal(answer(single), answer(folder))
    pixels = torch.rand(1, 3, 64, 64, generator=generator(2)) * 2 - 1
    for one, two in zip(families.encode_images(single, pixels), families.encode_images(folder, pixels), strict=True):
        assert torch.equal(one, two)
    if kind in UNETS:
        assert torch.equal(alphas(single), alphas(folder))
    assert single.base.size == folder.base.size
    assert sampler.native_side(single) == (96 if kind == "sd21-v" else 64)
    assert single.spec == folder.spec


def test_each_kind_has_the_names_that_programs_know(bases: dict[str, Path]) -> None:
    families_of = {kind: load(bases[kind]) for kind in KINDS}
    facts = {
        kind: writer.of_family(one.base.family, one.noise.prediction_type, one.base.size)
        for kind, one in families_of.items()
    }
    names = {kind: (told["modelspec.architecture"], told["ss_base_model_version"]) for kind, told in facts.items()}
    assert names == {
        "sd15": ("stable-diffusion-v1/lora", "sd_v1"),
        "sd21": ("stable-diffusion-v2-512/lora", "sd_v2_512"),
        "sd21-v": ("stable-diffusion-v2-768-v/lora", "sd_v2_768_v"),
        "sdxl": ("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
        "sd3": ("stable-diffusion-3-m/lora", "sd3"),
        "flux": ("flux-1-dev/lora", "flux1"),
        "sd3-5-medium": ("stable-diffusion-3-5-medium/lora", "sd3"),
    }


def test_xl_names_are_the_original_ones(bases: dict[str, Path]) -> None:
    """Against the tests' own counting of the blocks, for every module that can be adapted."""
    family = load(bases["sdxl"])
    original = block_names(json.loads((bases["sdxl"] / "unet" / "config.json").read_text()))
    leaves = [path for path, part in family.denoiser.named_modules() if part._parameters]
    inside = [path for path in leaves if path.partition(".")[0] in ("down_blocks", "mid_block", "up_blocks")]
    assert len(inside) > 200
    for path in inside:
        assert family.module_name(path) == unet_name(path + ".", original).rstrip(".").replace(".", "_")
    assert family.module_name("conv_norm_out") == "out_0"
    with pytest.raises(RuntimeError, match="conv_norm_in has no name"):
        family.module_name("conv_norm_in")


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
        made = settings(bases["sdxl"], training__resolution=128, training__batch_size=1,
                        training__text_encoder=text_encoder)  # fmt: skip
        batch = encode.build(family, examples, made, quiet).at(0, 0)
        assert batch.sizes is not None
        scale = max(wide / 300, high / 200)
        top, left = (max(high, round(200 * scale)) - high) // 2, (max(wide, round(300 * scale)) - wide) // 2
        assert batch.sizes.tolist() == [[200, 300, top, left, high, wide]]
        assert (batch.conditioning is None) == text_encoder
        if batch.conditioning:
            assert torch.equal(batch.conditioning["sizes"], batch.sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_another_family_is_refused_in_words(bases: dict[str, Path], kind: str) -> None:
    other = "sdxl" if kind != "sdxl" else "sd15"
    with pytest.raises(
        UserError, match=r"is (Stable Diffusion|FLUX).*, but the settings say .*Set the family to 'auto'"
    ):
        load(bases[kind], family=other)
    assert load(bases[kind], family=family_of(kind)).base.family == family_of(kind)


# By kind: the losses of six steps that train both the UNet and the text encoders, with preservation.
CURVES = {
    "sd15": [1.08276, 1.102173, 1.063543, 1.103795, 1.113519, 1.089006],
    "sd21": [1.032132, 1.078294, 1.058237, 1.069323, 1.094465, 1.08046],
    "sd21-v": [0.3818188, 0.3615885, 0.4085712, 0.5839075, 0.5502514, 0.7842969],
    "sdxl": [1.07138, 1.103865, 1.12967, 1.070911, 1.183797, 1.060231],
    "sd3": [4.149623, 4.200058, 4.207041, 4.19533, 4.125912, 4.163121],
    "flux": [1.572104, 1.560171, 1.595593, 1.590008, 1.571191, 1.559451],
    "sd3-5-medium": [4.077464, 4.184826, 4.145877, 4.162012, 4.153721, 4.144662],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_curve_is_the_stored_one(character: Path, bases: dict[str, Path], kind: str) -> None:
    run = runs.create(
        settings(bases[kind], training__text_encoder=True, preservation__share=0.25, preservation__prompts=[""],
                 **SMALL.get(kind, {}))
    )  # fmt: skip
    finish(run)
    curve = [loss for _, loss in sorted(losses(run).items())]
    assert curve == pytest.approx(CURVES[kind], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_twelve_steps_lower_the_loss(character: Path, bases: dict[str, Path], kind: str) -> None:
    run = runs.create(settings(bases[kind], training__steps=12, optimizer__learning_rate=0.05, **SMALL.get(kind, {})))
    finish(run)
    family, made = load(bases[kind]), run.config()
    batches = encode.build(family, dataset.read(character, "rin"), made, quiet)
    adapter = families.attach(family, made.adapter, text_encoder=False, seed=0)
    take(adapter, reader.read(run.export).tensors)

    def loss() -> float:
        with torch.no_grad():
            parts = [training_loss(family, adapter, batches.at(one, 0), made, generator(one)) for one in range(8)]
        return float(torch.stack(parts).mean())

    learned = loss()
    with adapter.off():
        assert learned < 0.995 * loss()


@pytest.mark.parametrize("kind", ["sd21-v", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize(
    "options",
    [{"preservation__share": 0.25}, {"training__text_encoder": True, "training__precision": "bf16"}],
    ids=["cached", "text encoder in bf16"],
)
def test_six_steps_are_three_and_three(
    character: Path, bases: dict[str, Path], kind: str, options: dict[str, Any]
) -> None:
    made = settings(bases[kind], **options, **SMALL.get(kind, {}))
    whole, parts = runs.create(made), runs.create(made)
    expected = finish(whole)

    class Stopper:
        """Asks for a stop after the third step."""

        def __call__(self, event: events.Event) -> None:
            if isinstance(event, events.Step) and event.step == 3:
                runs.request(parts, "stop")

    train(parts.config(), Run(parts.folder, Stopper()))
    assert runs.look(parts).status == "stopped"
    assert same(finish(parts), expected)
    assert losses(parts) == losses(whole)


PREFIXES = {"sd15": ["lora_te_"], "sd21": ["lora_te_"], "sd21-v": ["lora_te_"], "sdxl": ["lora_te1_", "lora_te2_"]}


@pytest.mark.parametrize("kind", UNETS)
def test_the_file_does_what_the_adapter_did(character: Path, bases: dict[str, Path], kind: str) -> None:
    """Alpha is half the rank; the live adapter, the painter and a fresh diffusers pipeline give one picture."""
    run = runs.create(settings(bases[kind], training__text_encoder=True, training__steps=8))
    finish(run)
    file = reader.read(run.export)
    for prefix in ("lora_unet_", *PREFIXES[kind]):
        of_it = [name for name in file.modules if name.startswith(prefix)]
        assert any(float(file.modules[name].up.abs().max()) > 0 for name in of_it), prefix
        if prefix != "lora_unet_":
            assert all(name.startswith(f"{prefix}text_model_encoder_layers_") for name in of_it)
    assert ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in file.modules) == (kind == "sdxl")
    assert {(module.rank, module.alpha) for module in file.modules.values()} == {(4, 2.0)}
    family = load(bases[kind])
    assert writer.of_family(family.base.family, family.noise.prediction_type).items() <= file.metadata.items()
    assert file.metadata["ss_v2"] == str(kind.startswith("sd21"))
    assert file.metadata["modelspec.prediction_type"] == ("v" if kind == "sd21-v" else "epsilon")

    picture = PictureConfig(base=str(bases[kind]), prompt="rin, smiling", steps=3, guidance=3.0, out="x.png")
    adapter = families.attach(family, run.config().adapter, text_encoder=True, seed=0)
    take(adapter, file.tensors)
    live = np.asarray(sampler.generate(family, picture))
    painter = sampler.Sampler()
    base = np.asarray(painter.generate(picture))
    painted = np.asarray(painter.generate(picture.model_copy(update={"adapters": ((str(run.export), 1.0),)})))
    text_only = {key: value for key, value in file.tensors.items() if not key.startswith("lora_unet_")}
    fresh = DiffusionPipeline.from_pretrained(bases[kind], local_files_only=True)
    fresh.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray[Any, Any]:
        result = fresh("rin, smiling", negative_prompt="", num_inference_steps=3, guidance_scale=3.0,
                       generator=torch.Generator().manual_seed(1))  # fmt: skip
        return np.asarray(result.images[0])

    fresh.load_lora_weights(str(run.folder), weight_name=run.export.name)
    assert np.array_equal(draw(), live)
    assert np.array_equal(painted, live)
    assert not np.array_equal(base, live)
    fresh.unload_lora_weights()
    fresh.load_lora_weights(text_only)
    assert not np.array_equal(draw(), base)


@pytest.mark.slow
def test_a_single_file_trains_and_is_tried_out(
    character: Path, bases: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    file = write(bases["sdxl"], tmp_path / "base.safetensors")
    run, same_run = runs.create(settings(file)), runs.create(settings(bases["sdxl"]))
    assert same(finish(run), finish(same_run))
    assert reader.read(run.export).metadata["ss_sd_model_name"] == "base.safetensors"
    picture = PictureConfig(base=str(file), adapters=((str(run.export), 1.0),), prompt="rin", steps=1, out="x.png")
    assert sampler.Sampler().generate(picture).size == (64, 64)


@pytest.mark.parametrize(
    ("trained", "tried"), [("sdxl", "sd15"), ("sd15", "sdxl"), ("sd15", "sd21"), ("sd3", "sdxl"), ("flux", "sd3")]
)
def test_an_adapter_of_another_family_is_refused(
    character: Path, bases: dict[str, Path], tmp_path: Path, trained: str, tried: str
) -> None:
    family = load(bases[trained])
    adapter = families.attach(family, settings(bases[trained]).adapter, text_encoder=True, seed=0)
    run = runs.create(settings(bases[trained]))
    export.write(family, adapter, settings(bases[trained]), run, ["x"], 1)
    picture = PictureConfig(
        base=str(bases[tried]), adapters=((str(run.export), 1.0),), prompt="rin", steps=1, out="x.png"
    )
    with pytest.raises(
        UserError, match=r"does not fit the base model|has a different size in the base model|The base model has no"
    ):
        sampler.Sampler().generate(picture)


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
    run = runs.create(settings(Path("owner/name"), training__steps=1))
    finish(run)
    assert (run.config().model.family, run.config().model.revision) == ("sdxl", commit)
    assert 'base = "owner/name"' in reader.read(run.export).metadata["limner.config"]


def test_zero_terminal_snr_is_read_from_the_file(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    file = write(bases["sdxl"], tmp_path / "base.safetensors", marks=("v_pred", "ztsnr"))
    family = load(file)
    assert family.base.prediction_type == "v_prediction"
    assert float(alphas(family)[-1]) == 0
    assert float(alphas(family)[0]) > 0.99
    assert family.pipeline().scheduler.config.timestep_spacing == "trailing"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_mark_for_zero_terminal_snr_alone_holds_if_the_base_predicts_v(
    character: Path, bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, kind: str
) -> None:
    """The mark alone leaves open what is predicted, so the base is tested. Training and sampling have one schedule."""
    file = write(bases["sdxl"], tmp_path / "base.safetensors", marks=("ztsnr",))
    usual = alphas(load(bases["sdxl"]))
    family = load(file, prediction_type=kind)
    batch = encode.build(family, dataset.read(character, "rin"), settings(file), quiet).at(0, 0)
    assert batch.sizes is not None
    teach(family, batch.mean, kind, batch.sizes)
    family.set_prediction_type("epsilon" if kind == "v_prediction" else "v_prediction")
    run = runs.create(settings(file))
    prediction_type.resolve(run.config(), family, batch, run)
    assert family.noise.prediction_type == kind
    scheduler = family.pipeline().scheduler
    assert torch.equal(alphas(family), scheduler.alphas_cumprod)
    assert torch.equal(alphas(family), usual) == (kind == "epsilon")
    assert (float(alphas(family)[-1]) == 0) == (kind == "v_prediction")
    assert (scheduler.config.timestep_spacing == "trailing") == (kind == "v_prediction")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_is_marked_trains_and_draws_with_finite_numbers(
    character: Path, bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, kind: str
) -> None:
    """At zero terminal SNR, min-SNR would divide zero by zero for a base that predicts noise."""
    file = write(bases["sd15"], tmp_path / "base.safetensors", marks=("ztsnr",))
    late = {"objective__min_timestep": 999, "objective__weighting": "min-snr", "training__steps": 2}
    run = runs.create(settings(file, model__prediction_type=kind, preview__every=2, **late))
    finish(run)
    assert all(np.isfinite(loss) for loss in losses(run).values())
    pixels = np.asarray(Image.open(run.folder / "previews" / "000002_0.png"))
    assert pixels.std() > 1
    assert reader.read(run.export).metadata["ss_zero_terminal_snr"] == str(kind == "v_prediction")


def test_a_folder_that_predicts_noise_keeps_the_usual_schedule(bases: dict[str, Path], tmp_path: Path) -> None:
    base = shutil.copytree(bases["sd15"], tmp_path / "base")
    file = base / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_betas_zero_snr": True}))
    family = load(base)
    assert torch.equal(alphas(family), alphas(load(bases["sd15"])))
    assert torch.equal(family.pipeline().scheduler.alphas_cumprod, alphas(family))
    family.set_prediction_type("v_prediction")
    assert float(alphas(family)[-1]) == 0


def alphas(family: Family) -> torch.Tensor:
    assert isinstance(family.noise, DiscreteNoise)
    return family.noise.alphas_cumprod


def teach(family: Family, latents: Tensor, kind: str, sizes: Tensor | None = None) -> None:
    """Train the whole tiny UNet for a moment."""
    family.denoiser.requires_grad_(True)
    optimizer = torch.optim.AdamW(family.denoiser.parameters(), lr=5e-3)
    conditioning = family.encode_prompts([""] * len(latents))
    if sizes is not None:
        conditioning = {**conditioning, "sizes": sizes}
    for step in range(60):
        rng = generator(step)
        noise = torch.randn(latents.shape, generator=rng)
        timesteps = torch.randint(1000, (len(latents),), generator=rng)
        alpha = alphas(family)[timesteps].view(-1, 1, 1, 1)
        target = noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        (family.predict(noisy, timesteps, conditioning) - target).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_base_that_does_not_say_is_asked(
    character: Path, bases: dict[str, Path], tiny_configs: Path, tmp_path: Path, kind: str
) -> None:
    file = write(bases["sd21"], tmp_path / "base.safetensors")
    assert detect.look(file).prediction_type is None
    family = load(file)
    examples = dataset.read(character, "rin")
    batch = encode.build(family, examples, settings(file), quiet).at(0, 0)
    teach(family, batch.mean, kind)
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


def test_what_is_said_is_not_asked(character: Path, bases: dict[str, Path]) -> None:
    run = runs.create(settings(bases["sd21"], model__prediction_type="v_prediction"))
    finish(run)
    assert (run.config().model.family, run.config().model.prediction_type) == ("sd21", "v_prediction")
    assert run.config().record.prediction_type == "as set"
    assert reader.read(run.export).metadata["ss_base_model_version"] == "sd_v2_768_v"
    other = runs.create(settings(bases["sd21-v"]))
    finish(other)
    assert other.config().record.prediction_type == "read from its scheduler's config"


@pytest.mark.slow
def test_micro_answers_as_it_was_trained(character: Path) -> None:
    family = families.load(ModelConfig(), CPU, torch.float32)
    assert family.noise.prediction_type == "v_prediction"
    family.set_prediction_type("epsilon")
    settings = config.build({"name": "x", "dataset": "rin", "training": {"text_encoder": False}})
    batch = encode.build(family, dataset.read(character, "rin"), settings, quiet).at(0, 0)
    assert batch.conditioning is not None
    prediction_probe.probe(family, batch.mean, batch.conditioning)
    assert family.noise.prediction_type == "v_prediction"


@pytest.mark.slow
def test_a_base_that_is_larger_than_the_pictures_is_said(character: Path, bases: dict[str, Path]) -> None:
    run = runs.create(settings(bases["sdxl"], training__resolution=64))
    finish(run)
    assert not any("generates" in warning for warning in runs.look(run).state.warnings)
    family = load(bases["sdxl"])
    family.denoiser.register_to_config(sample_size=128)
    from trainer.train import warn

    warn(run, run.config(), family, [])
    assert any("generates 1024 x 1024 pixels; this run trains at 64" in one for one in runs.look(run).state.warnings)


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{"targets": "conv"}, {"kind": "loha", "targets": "conv"}], ids=["LoCon", "LoHa"])
def test_other_kinds_of_adapters_work_on_xl(character: Path, bases: dict[str, Path], options: dict[str, Any]) -> None:
    """With crops, long captions and the text encoders; the export compares the file with what was trained."""
    changes = {f"adapter__{key}": value for key, value in options.items()}
    extra = {"training__text_encoder": True, "captions__max_token_length": 150, "images__crops": 1}
    run = runs.create(settings(bases["sdxl"], training__steps=2, **extra, **changes))
    finish(run)
    names = reader.read(run.export).modules
    assert "lora_unet_input_blocks_1_0_in_layers_2" in names
    assert "lora_unet_output_blocks_2_2_conv" in names
    picture = PictureConfig(base=str(bases["sdxl"]), prompt="rin", steps=1, out="x.png")
    with_it = picture.model_copy(update={"adapters": ((str(run.export), 1.0),)})
    painter = sampler.Sampler()
    assert not np.array_equal(np.asarray(painter.generate(with_it)), np.asarray(painter.generate(picture)))


def test_a_single_file_with_the_names_of_2022_is_the_folder(
    bases: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    file = write(bases["sd15"], tmp_path / "base.safetensors")
    old = {key.replace(".transformer.text_model.", ".transformer."): value for key, value in load_file(file).items()}
    save_file(old, tmp_path / "old.safetensors")
    folder, single = load(bases["sd15"]), load(tmp_path / "old.safetensors")
    prompts = folder.encode_prompts(["miraxo, a woman"])["text"]
    assert torch.equal(single.encode_prompts(["miraxo, a woman"])["text"], prompts)
    assert torch.equal(answer(folder), answer(single))


def test_a_folder_with_files_of_the_fp16_variant_alone(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases["sdxl"], tmp_path / "base")
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert torch.equal(answer(load(folder)), answer(load(bases["sdxl"])))


@pytest.mark.parametrize("parts", [("unet",), ("text_encoder_2", "vae")], ids=" and ".join)
def test_a_folder_with_some_files_of_the_fp16_variant(bases: dict[str, Path], tmp_path: Path, parts: list[str]) -> None:
    folder = shutil.copytree(bases["sdxl"], tmp_path / "base")
    for part in parts:
        (file,) = (folder / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert torch.equal(answer(load(folder)), answer(load(bases["sdxl"])))


def test_a_single_file_in_fp8_is_the_folder_in_fp8(bases: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    file = write(bases["sdxl"], tmp_path / "base.safetensors")
    small = {key: value.to(torch.float8_e4m3fn) for key, value in load_file(file).items()}
    save_file({key: value.float() for key, value in small.items()}, tmp_path / "rounded.safetensors")
    save_file(small, tmp_path / "fp8.safetensors")
    rounded = answer(load(tmp_path / "rounded.safetensors"))
    assert torch.equal(answer(load(tmp_path / "fp8.safetensors")), rounded)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_that_are_not_finite_are_refused(bases: dict[str, Path], tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(bases["sd15"], tmp_path / "base")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    next(value for key, value in tensors.items() if key.endswith("weight")).view(-1)[3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"'base' are damaged: {part}\..* has values that are not finite"):
        load(folder)
