"""A training adapter changes what the base model computes in training alone, a few-step adapter that in previews."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.families.models import Card, answer, equal, gradients, load
from tests.integration.training.test_settings import pixels
from tests.integration.training.test_train import assert_resumes, disturb, finished, same, save, settings
from tests.tiny import make_sd, make_z_image
from trainer import families, foreign_text, runs
from trainer.adapter_files import reader
from trainer.base_models import detect, name_hints
from trainer.config import ModelConfig, PictureConfig, base_notes
from trainer.config.adapter import AdapterConfig, LoKr, Lora
from trainer.errors import UserError
from trainer.families.files import loading
from trainer.families.hardware import gradient_checkpointing
from trainer.sampling import sampler


@pytest.fixture
def file(tiny_sd: Path, tmp_path: Path) -> Path:
    return save(tiny_sd, tmp_path / "turbo.safetensors")


@pytest.mark.parametrize(
    ("kind", "config"),
    [("z_image", Lora(rank=4)), ("sd15", Lora(rank=32, alpha=8.0, targets="conv")), ("sd15", LoKr(rank=2, alpha=2.0))],
    ids=["linear", "convolutions", "LoKr"],
)
def test_it_is_added_to_predictions_but_not_to_images(
    bases: dict[str, Path], tmp_path: Path, kind: str, config: AdapterConfig
) -> None:
    path = save(bases[kind], tmp_path / "turbo.safetensors", config)
    bare, family = load(bases[kind]), load(bases[kind], training_adapter=str(path))
    images = {"seed": 1, "steps": 2, "guidance": 2.0, "side": 64}
    with families.patched(bare, [(reader.read(path), 1.0)]):
        expected = answer(bare)
    assert torch.allclose(answer(family), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(answer(bare), expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(family.generate_latents("rin", **images), bare.generate_latents("rin", **images))
    assert torch.allclose(answer(family), expected, rtol=1e-3, atol=1e-4), "it is on again"
    assert families.fingerprint(family.denoiser) == families.fingerprint(bare.denoiser)


def test_a_quantized_base_takes_one_too(tiny_sd: Path, file: Path) -> None:
    pytest.importorskip("bitsandbytes")
    bare, family = load(tiny_sd, weights="nf4"), load(tiny_sd, weights="nf4", training_adapter=str(file))
    whole = load(tiny_sd, training_adapter=str(file))
    assert (answer(family) - answer(whole)).norm() < 0.3 * (answer(family) - answer(bare)).norm()


def test_weights_that_wait_give_the_same_gradients(tiny_sd: Path, file: Path) -> None:
    """Of a DoRA, whose lengths are those of the base's weight with the training adapter."""
    family = load(tiny_sd, training_adapter=str(file))
    adapter = families.attach(family, Lora(rank=4, dora=True), text_encoder=False, seed=0)
    with adapter.off():
        base = answer(family)
    assert torch.allclose(answer(family), base, atol=1e-6), "what is to be preserved is the base with it"
    disturb(adapter)
    expected = gradients(family, adapter)
    gradient_checkpointing.recompute(family, "all", "all")
    with Card(family.denoiser):
        assert equal(gradients(family, adapter), expected)


def test_a_run_with_one_resumes_and_leaves_it_out(character: Path, tiny_sd: Path, file: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"preservation__share": 0.5, "held_out__share": 0.1, "training__steps": 3}
    options |= {"preview__at_start": True}
    run = assert_resumes(settings(tiny_sd, model__training_adapter=str(file), **options), 1)
    without = finished(tiny_sd, **options)
    assert load_file(run.export).keys() == load_file(without.export).keys()
    assert not same(load_file(run.export), load_file(without.export))
    first = "previews/000000_0.png"
    assert (pixels(run.folder / first) == pixels(without.folder / first)).all()
    metadata = reader.read(run.export).metadata
    named = foreign_text.parse_toml(metadata["limner.config"])["model"]["training_adapter"]
    assert named == file.name
    assert str(tmp_path) not in str(metadata)
    [warning] = [text for text in runs.look(run).state.warnings if file.name in text]
    assert "Previews and the finished adapter leave it out" in warning


def test_the_plan_notes_what_distilled_models_and_few_steps_take(tiny_sd: Path, file: Path) -> None:
    base = detect.look(tiny_sd)
    lightning = replace(base, few_step=name_hints.find_few_step("lightning"))
    turbo = replace(lightning, family="z_image")
    [note] = base_notes.find(settings(tiny_sd), lightning)
    assert "Rather train on the model that it was made from" in note
    assert "model.training_adapter" not in note
    assert "zimage_turbo_training_adapter_v2.safetensors" in base_notes.find(settings(tiny_sd), turbo)[0]
    [note] = base_notes.find(settings(tiny_sd, model__training_adapter=str(file)), turbo)
    assert note.startswith("While training, turbo.safetensors is added")
    named = {"preview__adapter": "sdxl-lightning-4step.safetensors"}
    [note] = base_notes.find(settings(tiny_sd, **named, preview__steps=25), base)
    assert "Lightning is made for about 4 steps at 1" in note
    assert not base_notes.find(settings(tiny_sd, **named, preview__steps=4, preview__guidance=1.0), base)
    assert not base_notes.find(settings(tiny_sd, preview__adapter="turbid.safetensors"), base)


def refusal(base: Path, name: Path | str) -> str:
    with pytest.raises(UserError) as error:
        load(base, training_adapter=str(name))
    return str(error.value)


@pytest.mark.slow
def test_what_does_not_fit_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    tiny, path = bases["sd15"], tmp_path / "turbo.safetensors"
    assert "does not fit the base model: it changes lora_" in refusal(tiny, save(bases["sdxl"], path))
    assert "does not fit the base model: it changes lora_" in refusal(tiny, save(bases["flux"], path))
    assert "changes lora_te_" in refusal(tiny, save(tiny, path, text_encoder=True))
    with pytest.raises(UserError, match="does not fit the base model"):  # as an adapter for previews
        families.frozen(load(tiny), str(path))
    tensors = load_file(save(tiny, path))
    save_file({key: torch.cat([part, part]) if "lora_up" in key else part for key, part in tensors.items()}, path)
    assert "does not fit the base model" in refusal(tiny, path)
    save(tiny, path, Lora(rank=4, dora=True))
    assert "depends on the base's weights" in refusal(tiny, path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "turbo" in refusal(tiny, path)
    path.unlink()
    assert "'turbo.safetensors' is not there" in refusal(tiny, path)
    name = "ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors"
    assert f"limner download {name}" in refusal(tiny, name)
    for setting in ("model__training_adapter", "preview__adapter"):
        with pytest.raises(UserError, match="limner download"):
            base_notes.check(settings(tiny, **{setting: name}))


@pytest.mark.slow
def test_a_few_step_adapter_is_in_previews_alone(character: Path, tiny_sd: Path, file: Path) -> None:
    lightning = file.rename(file.with_name("lightning_4step.safetensors"))
    options: dict[str, Any] = {"preview__at_start": True, "training__steps": 2, "preservation__share": 0.5}
    options |= {"preservation__prompts": ["house"], "preservation__generated_share": 0.5}
    chosen = {"preview__adapter": str(lightning), "preview__adapter_strength": 0.5}
    usual, run = finished(tiny_sd, **options), finished(tiny_sd, **options | chosen)
    assert same(load_file(run.export), load_file(usual.export))
    family = load(tiny_sd)
    family.pipeline().scheduler = loading.few_step_scheduler(family.pipeline().scheduler, name_hints.FEW_STEP_KINDS[2])
    for step, own in ((0, []), (2, [(reader.read(run.export), 1.0)])):
        out = run.folder / f"previews/{step:06d}_0.png"
        request = PictureConfig(prompt="rin", steps=2, out=str(out), clip_skip=1)
        with families.patched(family, [(reader.read(lightning), 0.5), *own]):
            expected = np.asarray(sampler.generate(family, request), dtype=int)
        assert abs(pixels(out) - expected).max() <= 2
        assert abs(pixels(usual.folder / out.relative_to(run.folder)) - expected).max() > 20


def test_an_adapter_is_taken_out_again_after_an_error(tiny_sd: Path, file: Path) -> None:
    family = load(tiny_sd)
    expected = answer(family)
    frozen = families.frozen(family, str(file), 0.5)
    with suppress(RuntimeError), frozen.added(family.device):
        assert not torch.equal(answer(family), expected)
        raise RuntimeError
    assert torch.equal(answer(family), expected)


@pytest.mark.slow
def test_previews_of_another_model_have_the_adapter(tiny_sd: Path, character: Path, tmp_path: Path) -> None:
    """It takes fewer bits, as the base model does."""
    pytest.importorskip("bitsandbytes")
    base, other = tiny_sd, make_sd(tmp_path / "other", seed=5)
    options: dict[str, Any] = {"preview__prompts": ["rin --w 64 --h 64"], "preview__at_start": True}
    options |= {"training__steps": 2, "model__weights": "nf4"}
    usual, run = finished(base, **options), finished(base, **options, preview__base=str(other))
    assert same(load_file(run.export), load_file(usual.export))
    encoded, guidance = sampler.encode(load(base), {"rin", ""}), run.config().preview.guidance
    family = load(other, weights="nf4")
    for step, strength in ((0, 0.0), (2, 1.0)):
        out = run.folder / f"previews/{step:06d}_0.png"
        request = PictureConfig(prompt="rin", steps=2, guidance=guidance, width=64, height=64, out=str(out))
        adapter = families.fit(family, reader.read(run.export), "", strength)
        with adapter.added(family.device):
            expected = np.asarray(sampler.generate(family, request, encoded=encoded), dtype=int)
        assert abs(pixels(out) - expected).max() <= 2
        assert abs(pixels(usual.folder / out.relative_to(run.folder)) - expected).max() > 20


@pytest.mark.slow
def test_a_trained_text_encoder_encodes_for_another_model(character: Path, tiny_sd: Path, tmp_path: Path) -> None:
    other = make_sd(tmp_path / "other", seed=5)
    options = {"training__text_encoder": True, "training__steps": 1, "preview__prompts": ["rin", "rin --strength 0"]}
    run = finished(tiny_sd, **options, preview__base=str(other), optimizer__learning_rate=1.0)
    with_it, without = (pixels(run.folder / f"previews/000001_{number}.png") for number in range(2))
    encoded = sampler.encode(load(tiny_sd), {"rin", ""})
    request = PictureConfig(prompt="rin", steps=2, out="x")
    expected = np.asarray(sampler.generate(load(other), request, encoded=encoded), dtype=int)
    assert abs(without - expected).max() <= 2, "the prompt is encoded by the base model"
    assert abs(with_it - expected).max() > 20


def test_another_model_for_previews_must_fit(bases: dict[str, Path], tmp_path: Path) -> None:
    turbo = make_z_image(tmp_path / "z_image_turbo", seed=5)

    def refusal_of(base: Path, **changes: Any) -> str:  # noqa: ANN401 - any settings
        with pytest.raises(UserError) as error:
            base_notes.check(settings(base, **changes))
        return str(error.value)

    tiny = bases["sd15"]
    assert "is Z-Image, but the base model is Stable Diffusion 1.x" in refusal_of(tiny, preview__base=str(turbo))
    assert "does not exist" in refusal_of(tiny, preview__base="/nowhere/turbo")
    assert "need the base model itself" in refusal_of(tiny, preview__base=str(tiny), adapter__dora=True)
    family: Any = load(bases["z_image"])
    family.denoiser.layers[0].attention.to_q = torch.nn.Linear(8, 8)
    with pytest.raises(UserError, match="'z_image_turbo' has other layers than the base model"):
        families.read_other(str(turbo), ModelConfig(), family)
    [note] = base_notes.find(settings(bases["z_image"], preview__base=str(turbo), preview__steps=25), detect.look(tiny))
    assert "Turbo is made for about 9 steps at 1" in note
