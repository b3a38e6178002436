"""Each setting of a recipe does something, and what it should, on a tiny real model."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file

from tests.integration.families.models import taken_from
from tests.integration.training.test_settings import finish, learned, mute, same, settings
from tests.integration.training.test_train import attached, disturb
from trainer import config, families, paths, runs
from trainer.config import TrainConfig
from trainer.data import dataset, images
from trainer.data.captions import contains_trigger
from trainer.errors import UserError
from trainer.families import Family
from trainer.families.hardware import cpu_kernels
from trainer.families.sd import tokenize
from trainer.rng import generator
from trainer.runs import events
from trainer.train import train
from trainer.training import loss, optimizer_step
from trainer.training.checkpoint import TrainState
from trainer.training.inputs import augment, encode
from trainer.training.inputs.batches import Batches
from trainer.training.recovery import initial_state


def built(family: Family, character: Path, config: TrainConfig) -> Batches:
    return encode.build(family, dataset.read(character, "rin"), config, mute)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(character: Path, tiny_sd: Path) -> None:
    options = {"training__text_encoder": True, "adapter__rank_dropout": 0.3, "training__steps": 3}
    plain = runs.create(settings(tiny_sd, **options))
    expected = finish(plain)
    run = runs.create(settings(tiny_sd, training__gradient_checkpointing="all", **options))
    assert same(finish(run), expected)
    assert runs.look(run).state.losses == runs.look(plain).state.losses


def test_views_of_a_picture(family: Family, character: Path, tiny_sd: Path) -> None:
    made = built(family, character, settings(tiny_sd, images__crops=2, images__flip=True))
    assert {len(views) for views in made.own.views} == {6}
    first = [made.cache.get(file)["mean"] for file in made.own.views[0]]
    assert len({view.numpy().tobytes() for view in first}) == 6
    again = built(family, character, settings(tiny_sd, images__crops=2, images__flip=True, seed=1))
    assert again.own.views == made.own.views, "another run of the same data set finds what is encoded"


def test_a_part_of_a_picture() -> None:
    image = Image.linear_gradient("L").convert("RGB")  # 256 x 256, black above, white below
    view = augment.View(part=(0.5, 0.5, 1.0, 1.0))
    part = augment.crop(image, (64, 64), view)
    assert part.size == (128, 128)
    assert np.asarray(part).min() >= 127
    wide = augment.crop(image.resize((512, 256)), (64, 64), augment.View(part=(0.0, 0.0, 0.5, 0.5)))
    assert wide.size == (128, 128)
    assert augment.crop(image, (64, 64), augment.View()) is image


def transparent(path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))  # the left half
    image.save(path)


def test_backgrounds_of_transparent_pictures(family: Family, character: Path, tiny_sd: Path) -> None:
    transparent(character / "01.png")
    assert images.alpha_channel((character / "01.png").read_bytes()) is not None
    assert images.alpha_channel((character / "02.png").read_bytes()) is None
    made = built(family, character, settings(tiny_sd, images__background="random", images__backgrounds=3))
    assert [len(views) for views in made.own.views[:2]] == [3, 1]
    first = [made.cache.get(file)["mean"] for file in made.own.views[0]]
    assert not torch.equal(first[0], first[1])
    configs = (settings(tiny_sd, images__background=colour) for colour in ("white", "black"))
    white, black = (built(family, character, config) for config in configs)
    assert white.own.views[0] != black.own.views[0]
    assert white.own.views[1] == black.own.views[1], "a picture that is opaque is the same on every colour"
    data = (character / "01.png").read_bytes()
    assert images.decode(data, "#00ff00").getpixel((0, 0)) == (0, 255, 0)


def test_masks_from_a_file_and_from_alpha(family: Family, character: Path, tiny_sd: Path) -> None:
    transparent(character / "01.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 64, 32))  # the upper half
    mask.save(dataset.mask_file(character / "02.png"))
    dataset.mask_file(character / "03.png").symlink_to(dataset.mask_file(character / "02.png"))  # is not followed
    assert len(dataset.read(character)) == 14, "a mask is no picture"
    made = built(family, character, settings(tiny_sd, objective__masked_loss=True, images__flip=True))
    alpha, mirrored = (made.cache.get(file)["mask"] for file in made.own.views[0])
    assert torch.equal(alpha, torch.tensor([0.0] * 4 + [1.0] * 4).expand(1, 8, 8))
    assert torch.equal(mirrored, alpha.flip(-1))
    upper = made.cache.get(made.own.views[1][0])["mask"]
    assert torch.allclose(upper[0, :, 0], torch.tensor([1.0] * 4 + [0.0] * 4), atol=0.02)
    assert torch.equal(made.cache.get(made.own.views[2][0])["mask"], torch.ones(1, 8, 8))
    batch = made.at(0, 0)
    assert batch.mask.shape == (4, 1, 8, 8)
    assert built(family, character, settings(tiny_sd)).at(0, 0).mask is None
    before = dataset.digest(dataset.read(character))
    mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(dataset.mask_file(character / "02.png"))
    again = built(family, character, settings(tiny_sd, objective__masked_loss=True))
    lower = again.cache.get(again.own.views[1][0])["mask"]
    assert torch.allclose(lower, upper.flip(-2), atol=0.02), "what is cached is not the mask of before"
    adapter, config = attached(family, tiny_sd, text_encoder=False), settings(tiny_sd, objective__unmasked_weight=0.0)
    masked, whole = (
        loss.training_loss(family, adapter, replace(batch, mask=mask), config, generator(1))
        for mask in (alpha.expand(4, 1, 8, 8), None)
    )
    assert masked != whole
    assert dataset.digest(dataset.read(character)) != before


@pytest.mark.slow
def test_a_long_caption_is_encoded_in_parts(family: Family, character: Path, tiny_sd: Path) -> None:
    tokenizer = family.pipeline().tokenizer
    room = tokenizer.model_max_length - 2
    words = [tokenizer.decode(token) for token in tokenizer("smiling red hair", add_special_tokens=False).input_ids]
    long = " ".join(words * room)
    own = tokenizer([long, "rin"], padding="max_length", max_length=room + 2, truncation=True, return_tensors="pt")
    assert torch.equal(tokenize(tokenizer, [long, "rin"], 1), own.input_ids)
    parts = tokenize(tokenizer, [long, "rin"], 2)
    assert parts.shape == (4, room + 2)
    assert parts[1, 1:-1].tolist() == tokenizer(long, add_special_tokens=False).input_ids[room : 2 * room]
    with torch.no_grad():
        text = family.encode_prompts([long, "rin"], 2)["text"]
        first = family.encode_prompts([long, "rin"])["text"]
        empty = family.encode_prompts([""])["text"]
    assert torch.allclose(text[:, : room + 2], first, atol=1e-5)
    assert torch.allclose(text[1, room + 2 :], empty[0], atol=1e-5)
    for number in range(1, 15):
        (character / f"{number:02}.txt").write_text(f"rin, {long}")
    run = runs.create(settings(tiny_sd, captions__max_token_length=150, training__steps=2))
    assert not same(finish(run), learned(tiny_sd, {"training__steps": 2}))
    assert any("captions are longer than" in warning for warning in runs.look(run).state.warnings)


@pytest.mark.slow
def test_prior_pictures_have_their_share_and_weight(family: Family, character: Path, tiny_sd: Path) -> None:
    other = character.parent / "people"
    other.mkdir()
    for number in range(5):
        Image.new("RGB", (64, 64), (40 * number, 90, 90)).save(other / f"{number}.png")
        (other / f"{number}.txt").write_text("a person")
    config = settings(tiny_sd, regularization__dataset="people", regularization__share=0.25, regularization__weight=0.5)
    made = built(family, character, config)
    batches = [made.at(step, 0) for step in range(40)]
    prior = [batch for batch in batches if batch.captions == ("a person",) * 4]
    assert (len(prior), {batch.weight for batch in prior}) == (10, {0.5})
    assert all(contains_trigger(text, "rin") for each in batches if each.weight == 1 for text in each.captions)
    run = runs.create(config)
    finish(run)
    Image.new("RGB", (64, 64), "white").save(other / "0.png")
    with pytest.raises(UserError, match="changed since this run started"):
        train(run.config(), run)
    (character.parent / "none").mkdir()
    with pytest.raises(UserError, match="regularization images is empty"):
        built(family, character, settings(tiny_sd, regularization__dataset="none"))


def test_regularization_takes_no_turns_of_preservation(family: Family, character: Path, tiny_sd: Path) -> None:
    options = {"regularization__share": 0.25, "preservation__share": 0.25, "training__batch_size": 1}
    made = built(family, character, settings(tiny_sd, regularization__dataset="rin", **options))
    batches = [made.at(step, 0) for step in range(64)]
    assert sum(len(batch.preserved) for batch in batches) == 12, "a quarter of the 48 batches of other images"


def test_the_average_is_that_of_diffusers_and_exported(family: Family, tiny_sd: Path) -> None:
    adapter = attached(family, tiny_sd, text_encoder=False)
    state = initial_state(settings(tiny_sd, training__ema_decay=0.6), adapter)
    theirs = EMAModel(state.parameters(), decay=0.6)
    for step in range(1, 12):
        with torch.no_grad():
            for parameter in state.parameters():
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        state.update_ema(step, 0.6)
        theirs.step(state.parameters())
        for ours, other in zip(state.average, theirs.shadow_params, strict=True):
            assert torch.allclose(ours, other, atol=1e-5), step
    live = [parameter.detach().clone() for parameter in state.parameters()]
    with state.exported_weights(adapter):
        assert torch.equal(state.parameters()[0], state.average[0])
        assert not torch.equal(state.parameters()[0], live[0])
    assert all(torch.equal(before, after) for before, after in zip(live, state.parameters(), strict=True))


@pytest.mark.slow
def test_the_guard_begins_again_at_half_the_rate(character: Path, tiny_sd: Path) -> None:
    options = {"training__steps": 60, "training__spike_threshold": 1.3, "training__max_grad_norm": 0.0}
    options |= {"optimizer__learning_rate": 0.05}
    run = runs.create(settings(tiny_sd, **options))
    finish(run)
    config = run.config()
    restarts, rate = config.record.restarts, config.optimizer.learning_rate
    assert restarts >= 1
    assert rate == 0.05 / 2**restarts
    warnings = "".join(event.message for event in events.read(run.log)[0] if isinstance(event, events.Warned))
    assert warnings.count(f"starts again at a learning rate of {rate:g}") == 1
    starts = [event.step for event in events.read(run.log)[0] if isinstance(event, events.Started)]
    assert (starts, len(runs.look(run).state.losses)) == ([0] * (restarts + 1), 60)
    same_rate = settings(tiny_sd, **(options | {"training__spike_threshold": 0.0, "optimizer__learning_rate": rate}))
    assert same(load_file(run.export), finish(runs.create(same_rate))), "it is as if it had begun at that rate"


@pytest.fixture
def progress(family: Family, tiny_sd: Path) -> TrainState:
    return initial_state(settings(tiny_sd), attached(family, tiny_sd, text_encoder=False))


def set_gradients(progress: TrainState, value: float) -> None:
    for parameter in progress.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_gradients_explode_or_are_scaled_down_to_the_limit(progress: TrainState, tiny_sd: Path) -> None:
    config = settings(tiny_sd, training__spike_threshold=10.0, training__steps=100)
    norms = {0: 1.0, 1: 90.0, 2: 1.0, 3: 2.0, 4: 3.0, 5: 19.0, 6: 41.0, 7: float("nan"), 15: 1e9}
    exploded = [step for step, norm in norms.items() if optimizer_step.exploded(norm, step, config, progress)]
    assert exploded == [6, 7], "only within the first 15 %"
    assert not optimizer_step.exploded(1e9, 6, settings(tiny_sd, training__steps=100), progress)
    set_gradients(progress, 2.0)
    norm = 2 * sum(parameter.numel() for parameter in progress.parameters()) ** 0.5
    before = [float(optimizer_step.clip(progress, limit, None)) for limit in (0.0, 1.0, 0.0)]
    assert before == pytest.approx([norm, norm, 1.0], rel=1e-4), "0 is no limit, and a norm is that before"


def test_a_card_is_a_step_ahead_of_its_numbers(progress: TrainState, tiny_sd: Path) -> None:
    config = settings(tiny_sd, training__spike_threshold=10.0, training__steps=100)
    run = runs.create(config)
    card: Any = SimpleNamespace(device=torch.device("cuda"), num_processes=1)
    readings = optimizer_step.Readings(run, card, None)

    def take(step: int, loss: float, norm: float) -> list[int]:
        """Return the steps that are reported after a step without anything that needs its numbers."""
        readings.add(step, torch.tensor(loss), torch.tensor(norm), 0.1, time.monotonic())
        readings.report(config, progress)
        return list(runs.look(run).state.losses)

    assert [take(step, 0.1, 1.0) for step in (1, 2, 3)] == [[], [1], [1, 2]]
    readings.report(config, progress, every=True)
    assert list(runs.look(run).state.losses) == [1, 2, 3], "before anything is saved"
    assert [take(step, 0.1, norm)[-1] for step, norm in ((4, 1.0), (5, 1.0), (6, 99.0))] == [3, 4, 5]
    with pytest.raises(optimizer_step.ExplodedError) as jump:
        take(7, 0.1, 99.0)
    assert (jump.value.step, jump.value.norm) == (5, 99.0)
    assert take(1, 0.1, 1.0)[-1] == 5, "what came after the explosion is forgotten"
    take(2, math.nan, 1.0)
    with pytest.raises(UserError, match="after step 1: loss nan"):
        readings.report(config, progress, every=True)


def test_a_scaler_passes_over_what_is_too_large_and_is_kept(progress: TrainState, tiny_sd: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # makes its tensors
    before = [parameter.detach().clone() for parameter in progress.parameters()]
    set_gradients(progress, float("inf"))
    norm = float(optimizer_step.clip(progress, 1.0, scaler))
    optimizer_step.check(1.0, norm, 0, settings(tiny_sd), scaler)
    optimizer_step.advance(progress, 0.01, scaler)
    assert all(torch.equal(old, new) for old, new in zip(before, progress.parameters(), strict=True))
    assert progress.extra["scaler"]["scale"] == 512.0
    set_gradients(progress, 512.0)
    count = sum(each.numel() for each in progress.parameters())
    assert float(optimizer_step.clip(progress, 0.0, scaler)) == pytest.approx(count**0.5, rel=1e-4)
    optimizer_step.advance(progress, 0.01, scaler)
    assert not torch.equal(before[0], progress.parameters()[0])
    fresh = torch.amp.GradScaler("cpu")
    assert optimizer_step.restore_scaler(fresh, progress) is fresh
    assert fresh.state_dict() == scaler.state_dict()


@pytest.mark.parametrize(("size", "product"), [((2, 3, 5), True), ((2, 8, 16), False)])
def test_convolutions_over_few_positions_are_products(tiny_sd: Path, size: tuple[int, int, int], product: bool) -> None:
    """In bf16 alone, and what comes out of it and its gradient are those of the convolution."""
    family = families.load(settings(tiny_sd).model, torch.device("cpu"), torch.bfloat16)
    plain, changed = (torch.nn.Conv2d(8, 256, 3, padding=1).requires_grad_(False) for _ in range(2))
    changed.load_state_dict(plain.state_dict())
    family.pipeline().unet.conv_norm_out.add_module("probe", changed)
    cpu_kernels.optimize_for_cpu(family, 256)
    pixels = torch.randn(size[0], 8, *size[1:])
    results = []
    for module in (plain, changed):
        inputs = pixels.clone().requires_grad_()
        output = module(inputs)
        output.square().sum().backward()
        results.append(torch.cat([output.detach().flatten(), inputs.grad.flatten()]))
    assert torch.allclose(*results, rtol=1e-4, atol=1e-4)
    assert changed.weight.is_contiguous() == product  # the other way it stays with its channels last


def test_the_adapter_is_in_full_precision_its_inputs_as_the_base(tiny_sd: Path) -> None:
    family = families.load(settings(tiny_sd).model, torch.device("cpu"), torch.bfloat16)
    adapter = attached(family, tiny_sd)
    trained = list(adapter.parameters())
    assert {(parameter.dtype, parameter.requires_grad) for parameter in trained} == {(torch.float32, True)}
    assert {id(each) for each in family.denoiser.parameters() if each.requires_grad} <= set(map(id, trained))
    seen: set[torch.dtype] = set()
    for layer in adapter.layers.values():
        layer.module.lora_A["default"].register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        family.predict(torch.randn(1, 4, 8, 8), torch.tensor([10]), {"text": torch.randn(1, 40, 32)})
    assert seen == {torch.bfloat16}


Places = Sequence[tuple[int, int]]


def compute_gradients(
    family: Family, adapter: families.Adapter, batches: Batches, config: TrainConfig, places: Places
) -> torch.Tensor:
    """Add the gradients of batches to those of the adapter; return their loss."""
    model = Accelerator(cpu=True), family, adapter
    parts = optimizer_step.micro_batches(*model, batches, config, places)
    losses = [optimizer_step.add_gradient(*model, batch, config, rng) for batch, rng in parts]
    return torch.stack(losses).sum() / config.training.gradient_accumulation


def test_accumulated_gradients_are_a_mean(family: Family, character: Path, tiny_sd: Path) -> None:
    config = settings(tiny_sd, training__gradient_accumulation=2)
    single = settings(tiny_sd)
    adapter, batches = attached(family, tiny_sd, text_encoder=False), built(family, character, config)

    def gradient(config: TrainConfig, *places: tuple[int, int]) -> torch.Tensor:
        compute_gradients(family, adapter, batches, config, places)
        return torch.cat([gradient.flatten() for gradient in taken_from(adapter)])

    mean = (gradient(single, (0, 0)) + gradient(single, (0, 1))) / 2
    assert mean.abs().max() > 1e-6
    assert torch.allclose(gradient(config, (0, 0), (0, 1)), mean, rtol=1e-4, atol=1e-9)


def test_the_base_predicts_several_steps_at_once(family: Family, character: Path, tiny_sd: Path) -> None:
    config = settings(tiny_sd, preservation__share=0.25, training__micro_batches=2)
    adapter = attached(family, tiny_sd, text_encoder=False)
    images: list[int] = []  # in each pass

    def trained(*steps: int) -> list[torch.Tensor]:
        model = family, adapter, built(family, character, config), config
        images.clear()
        return [compute_gradients(*model, [(step, 0)]) for step in steps]

    family.denoiser.register_forward_pre_hook(lambda _, inputs: images.append(len(inputs[0])))
    with torch.no_grad():
        for layer in adapter.layers.values():
            layer.trained()["up"].normal_(std=3.0)
    whole = trained(*range(6))
    assert images == [2, *[3, 2] * 2] * 3
    assert trained(3, 4, 5) == whole[3:], "bit for bit"
    assert trained(5, 1) == [whole[5], whole[1]]

    batch = built(family, character, config).at(5, 0)
    plain = replace(batch, preserved=(), preserved_conditioning=None)
    rngs = (generator(config.seed, 5, 0, "noise") for _ in range(2))
    both = zip((batch, plain), rngs, strict=True)
    alone, without = (loss.training_loss(family, adapter, each, config, rng).item() for each, rng in both)
    assert alone == pytest.approx(whole[5].item(), rel=1e-5)
    assert without < 0.99 * alone


def test_a_single_image_and_its_preserved_row_are_computed_apart(
    family: Family, character: Path, tiny_sd: Path
) -> None:
    """With the memory of one image, and the same gradient as together."""
    options = {"training__batch_size": 1, "training__text_encoder": True}
    config = settings(tiny_sd, preservation__share=1.0, **options)
    adapter = attached(family, tiny_sd)
    disturb(adapter)
    rows: list[int] = []  # in each pass
    hook = family.denoiser.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    batches = built(family, character, config)
    apart = compute_gradients(family, adapter, batches, config, [(0, 0)]), taken_from(adapter)
    assert rows == [1, 1, 1], "what the base predicts, the image, and what is preserved of it"
    batch = batches.at(0, 0)
    together = loss.training_loss(family, adapter, batch, config, generator(config.seed, 0, 0, "noise"))
    together.backward()
    hook.remove()
    assert rows[3:] == [1, 2]
    assert apart[0].item() == pytest.approx(together.item(), rel=1e-5)
    for ours, expected in zip(apart[1], taken_from(adapter), strict=True):
        assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["character", "style"])
def test_a_first_run_generates_none_of_it(home: Path, kind: str) -> None:
    assert not (paths.outputs() / paths.CACHE).exists()
    folder = dataset.find_example(f"example-{kind}")
    settings = config.build({"name": "x", "dataset": str(folder), "trigger": "miraxo", "preset": kind})
    family = families.load(settings.model, torch.device("cpu"), torch.float32)
    reported: list[str] = []
    built = dataset.read(folder, "miraxo")[:1]
    encode.build(family, built, settings, lambda name, _done, _total: reported.append(name))
    assert "Encoding images" in reported
    assert "Generating images to preserve" not in reported
    files = sorted((paths.outputs() / paths.CACHE).glob("*.safetensors"))
    assert len(files) == len(settings.preservation.prompts) > 0
    shipped = load_file(encode.SHIPPED)
    assert {file.stem for file in files} == shipped.keys()
    if kind == "style":
        return
    prompts, guidance = settings.preservation.prompts, settings.preview.guidance
    latents = family.generate_latents(
        prompts[-1], seed=len(prompts) - 1, steps=encode.SAMPLING_STEPS, guidance=guidance, side=128
    )
    # Another processor adds in another order.
    assert min(float((latents.float() - other).abs().max()) for other in shipped.values()) < 0.01
