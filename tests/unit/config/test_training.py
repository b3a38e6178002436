"""The parts of a recipe against values worked out by hand."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from PIL import Image

from trainer import config
from trainer.config.objective import ObjectiveConfig
from trainer.data import dataset
from trainer.errors import UserError
from trainer.families.noise import DiscreteNoise, FlowNoise, NoiseSchedule
from trainer.optim.schedules import Constant, Cosine, Linear, Stable
from trainer.rng import generator
from trainer.training.inputs import augment
from trainer.training.inputs.batches import Batch
from trainer.training.inputs.tensor_cache import TensorCache
from trainer.training.loss import add_noise, draw_timesteps, error, masked, weight


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25])
@pytest.mark.parametrize(
    ("name", "ours", "options"),
    [
        ("constant_with_warmup", Constant, {}),
        ("linear", Linear, {"min_lr_ratio": 0}),
        ("cosine", Cosine, {"min_lr_ratio": 0}),
        ("cosine_with_restarts", Cosine, {"min_lr_ratio": 0, "cycles": 3}),
    ],
)
def test_schedules_are_those_of_diffusers(name: str, ours: Any, options: dict[str, Any], warmup: float) -> None:  # noqa: ANN401 - a schedule of any kind
    """After the warm-up they are equal; in it ours is a step ahead, so that no step is lost at a rate of 0."""
    steps, rising = 40, round(40 * warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycles = {"num_cycles": options["cycles"]} if "cycles" in options else {}
    theirs = get_scheduler(name, optimizer, num_warmup_steps=rising, num_training_steps=steps, **cycles).lr_lambdas[0]
    schedule = ours(warmup=warmup, **options)
    for step in range(steps):
        expected = theirs(step) if step >= rising else theirs(step + 1) if step + 1 < rising else 1.0
        assert schedule.factor(step, steps) == pytest.approx(expected), step


def test_schedules_by_hand() -> None:
    linear, cosine = Linear(warmup=0, min_lr_ratio=0.2), Cosine(warmup=0, min_lr_ratio=0.1)
    assert [linear.factor(step, 10) for step in (0, 5)] == pytest.approx([1.0, 0.6])
    last = 0.1 + 0.45 * (1 + math.cos(math.pi * 0.99))
    assert [cosine.factor(step, 100) for step in (0, 50, 99)] == pytest.approx([1.0, 0.55, last])
    stable = Stable(warmup=0, min_lr_ratio=0, cooldown=0.2)
    assert [stable.factor(step, 20) for step in (0, 15, 16, 17, 19)] == pytest.approx([1, 1, 1, 0.75, 0.25])
    assert [stable.shortened(step, 1000) for step in (40, 900)] == [50, 1000]
    assert [stable.factor(step, 50) for step in (40, 41)] == pytest.approx([1.0, 0.9])


# Signal over noise 999, 1 and 1/99.
ALPHA = torch.tensor([0.999, 0.5, 0.01])
SNR = torch.tensor([999.0, 1.0, 1 / 99])


def test_weightings_by_hand() -> None:
    for predicts, expected, settings in (
        ("epsilon", [5 / 999, 1.0, 1.0], {"weighting": "min-snr"}),
        ("v_prediction", [0.005, 0.5, 0.01], {"weighting": "min-snr"}),
        ("epsilon", 0.001 / SNR, {"weighting": "min-snr", "min_snr_gamma": 0.001}),
        ("epsilon", [999**-0.5, 1.0, 99**0.5], {"weighting": "debiased"}),
        ("v_prediction", 1 / (SNR + 1), {"weighting": "debiased"}),  # as in sd-scripts
        ("epsilon", [0.001, 0.5, 0.99], {"weighting": "p2"}),
        ("epsilon", [0.001**2, 0.5**2, 0.99**2], {"weighting": "p2", "p2_gamma": 2.0}),
    ):
        weights = weight(DiscreteNoise(ALPHA, predicts), torch.arange(3), ObjectiveConfig(**settings))
        assert torch.allclose(weights, torch.as_tensor(expected), rtol=1e-4), settings
    pure_noise = DiscreteNoise(torch.tensor([1 - 1e-7, 0.5, 0.0]), "epsilon")  # as with zero terminal SNR
    for weighting in ("min-snr", "debiased", "p2"):
        assert weight(pure_noise, torch.arange(3), ObjectiveConfig(weighting=weighting)).isfinite().all()


def test_pseudo_huber_by_hand() -> None:
    target, off = torch.zeros(2, 1, 1, 1), torch.tensor([0.75, 0.75]).view(2, 1, 1, 1)
    shares = torch.tensor([0.0, 1.0])
    plain = error(off, target, shares, ObjectiveConfig(loss_type="huber", huber_c=1.0))
    assert torch.allclose(plain.flatten(), torch.tensor([0.5, 0.5]))  # 2 (sqrt(0.5625 + 1) - 1)
    scheduled = error(off, target, shares, ObjectiveConfig(loss_type="scheduled-huber", huber_c=0.4))
    assert torch.allclose(scheduled.flatten(), torch.tensor([0.5, 0.8 * (0.85 - 0.4)]))  # c = 1 and c = 0.4
    assert torch.allclose(error(off, target, shares, ObjectiveConfig()), off**2)


def test_a_mask_weighs_and_keeps_the_mean_weight() -> None:
    errors = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2).repeat(1, 4, 1, 1)
    mask = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    assert masked(errors, mask, 0.0).mean() == pytest.approx(1.0)
    assert masked(errors, mask, 0.25).mean() == pytest.approx((1 + 0.25 * 3) / 1.25)
    assert torch.equal(masked(errors, torch.ones_like(mask), 0.1), errors)
    assert masked(errors, torch.zeros_like(mask), 0.0).isfinite().all()
    both = masked(errors.repeat(2, 1, 1, 1), torch.cat([mask, torch.ones_like(mask)]), 0.0)
    assert torch.equal(both[1:], errors), "each image by itself"
    whole, half = masked(torch.ones_like(errors), torch.tensor([1.0, 0.5]).view(1, 1, 1, 2), 0.0)[0, 0, 0].tolist()
    assert half == pytest.approx(whole / 2), "gray counts by its share"
    for gray, share in ((0, 0.0), (64, 0.25), (128, 0.5), (255, 1.0)):
        drawn = augment.mask(Image.new("L", (64, 64), gray), (64, 64), (64, 64), augment.View(), torch.zeros(4, 8, 8))
        assert torch.allclose(drawn, torch.full((1, 8, 8), share), atol=0.01)


NOISE = DiscreteNoise(torch.linspace(0.999, 0.001, 1000), "epsilon")


def drawn(count: int, objective: ObjectiveConfig, seed: int, noise: NoiseSchedule = NOISE) -> torch.Tensor:
    return draw_timesteps(count, noise, objective, generator(seed), (count, 4, 8, 8))


def test_perturbed_inputs_have_the_target_of_plain_ones() -> None:
    """Ning et al. 2023, section 3: the model sees more noise than it is asked to predict, unlike with an offset."""
    zeros = torch.zeros(2, 4, 8, 8)
    batch, family = Batch(zeros, zeros, None, ("a", "b"), 2), SimpleNamespace(noise=NOISE, device=torch.device("cpu"))
    settings = ({}, {"input_perturbation": 0.1}, {"noise_offset": 0.1})
    plain, perturbed, offset = (add_noise(family, batch, ObjectiveConfig(**each), generator(1)) for each in settings)
    assert torch.equal(plain.timesteps, perturbed.timesteps)
    assert torch.equal(plain.target, perturbed.target)
    assert (perturbed.latents - plain.latents).std() > 0.05
    assert (offset.target - plain.target).std() > 0.05


def test_timesteps_stay_in_their_range() -> None:
    few = drawn(4000, ObjectiveConfig(min_timestep=10, max_timestep=12), 0)
    assert set(few.tolist()) == {10, 11, 12}
    middle = drawn(4000, ObjectiveConfig(timestep_sampling="logit-normal"), 0).float()
    assert 470 < middle.mean() < 530
    inside = ((middle >= 400) & (middle < 600)).float().mean()
    assert inside == pytest.approx(0.315, abs=0.03)  # the normal distribution between logit(0.4) and logit(0.6)
    noisy = drawn(4000, ObjectiveConfig(timestep_sampling="logit-normal", logit_mean=1.0), 0)
    assert noisy.float().mean() > middle.mean() + 100
    ends = drawn(999, ObjectiveConfig(timestep_sampling="logit-normal", logit_std=4.0), 0)
    assert 0 <= int(ends.min()) < int(ends.max()) <= 999
    assert torch.equal(drawn(64, ObjectiveConfig(), 3), torch.randint(1000, (64,), generator=generator(3)))


def test_timesteps_of_flow_matching_are_those_of_the_paper() -> None:
    """As diffusers draws them for its own scripts, from the same random numbers; there, they count down."""
    plain, flow = (FlowNoise(lambda _shape, shift=shift: shift) for shift in (1.0, 3.0))
    for name, objective in {
        "mode": ObjectiveConfig(timestep_sampling="mode", mode_scale=0.8),
        "logit_normal": ObjectiveConfig(timestep_sampling="logit-normal", logit_mean=0.5, logit_std=2.0),
    }.items():
        theirs = compute_density_for_timestep_sampling(name, 64, 0.5, 2.0, 0.8, generator=generator(0))
        assert torch.allclose(drawn(64, objective, 0, plain), 1000 * theirs, atol=1e-3)
    middle = drawn(4000, ObjectiveConfig(timestep_sampling="logit-normal"), 0, flow)
    assert float(middle.median()) == pytest.approx(750, abs=15), "the shift of 3 moves the middle to 0.75"
    assert float(drawn(4000, ObjectiveConfig(), 0, plain).mean()) == pytest.approx(500, abs=15)
    few = drawn(4000, ObjectiveConfig(min_timestep=300, max_timestep=399), 0, flow)
    assert 300 <= float(few.min()) < 302 < 398 < float(few.max()) <= 400


TAGS = "rin, red hair, smiling, outdoors, night"


def variants(
    caption: str, trigger: str = "rin", seed: int = 0, file: Path = Path("a.png"), **captions: object
) -> tuple[str, ...]:
    settings = config.build({"name": "x", "dataset": "x", "seed": seed, "captions": captions})
    return augment.caption_variants(dataset.Example(file, caption, 64, 64, trigger), settings)


def test_tags_in_other_orders() -> None:
    shuffled = variants(TAGS, shuffle=True, keep_tokens=2)
    assert shuffled[0] == TAGS
    assert len(shuffled) == 8
    assert all(caption.startswith("rin, red hair, ") for caption in shuffled)
    assert len(set(shuffled)) > 3
    assert {tuple(sorted(caption.split(", "))) for caption in shuffled} == {tuple(sorted(shuffled[0].split(", ")))}
    assert shuffled == variants(TAGS, shuffle=True, keep_tokens=2)
    assert shuffled != variants(TAGS, shuffle=True, keep_tokens=2, seed=1)
    assert variants("alone", "", shuffle=True, shuffles=2) == ("alone", "alone")


def test_tags_are_dropped_but_those_in_front_and_the_trigger() -> None:
    dropped = variants("red hair, smiling, a portrait of rin, outdoors, night", tag_dropout=0.5, shuffles=64)
    assert dropped[0] == "red hair, smiling, a portrait of rin, outdoors, night"
    assert all(caption.startswith("red hair, ") and "a portrait of rin" in caption for caption in dropped)
    kept = [caption.split(", ") for caption in dropped[1:]]
    order = dropped[0].split(", ")
    assert all(tags == [tag for tag in order if tag in tags] for tags in kept), "in their order"
    for tag in ("smiling", "outdoors", "night"):
        assert 0.3 < sum(tag in tags for tags in kept) / len(kept) < 0.7
    both = [caption.split(", ") for caption in variants(TAGS, tag_dropout=0.5, shuffle=True, shuffles=64)]
    pairs = [tags for tags in both if {"night", "outdoors"} <= {*tags}]
    assert any(tags.index("night") < tags.index("outdoors") for tags in pairs)
    assert dropped == variants(dropped[0], tag_dropout=0.5, shuffles=64)


def test_a_caption_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("rin, smiling\n\n  a portrait of rin \nnight\n")
    (tmp_path / "b.txt").write_text("")
    joined = "rin, smiling a portrait of rin night"
    assert variants(joined, file=tmp_path / "a.png", multiple=True) == (
        "rin, smiling",
        "a portrait of rin",
        "rin, night",
    )
    assert variants(joined, file=tmp_path / "a.png") == (joined,)
    assert variants("", file=tmp_path / "b.png", multiple=True) == ("rin",)


def test_a_cache_holds_what_fits_and_reads_the_rest(tmp_path: Path) -> None:
    cache, value = TensorCache(room=10), {"x": torch.ones(2)}
    files = [tmp_path / ".cache" / f"{n}.safetensors" for n in range(3)]
    for file in files:
        assert not cache.has(file, {"x"})
        cache.put(file, value)
        assert cache.has(file, {"x"})
        assert torch.equal(cache.get(file)["x"], value["x"])
    assert len(cache._in_memory) == 1
    assert [TensorCache().has(files[2], {key}) for key in "xy"] == [True, False]
    files[2].unlink()
    with pytest.raises(UserError, match="cache was deleted"):
        cache.get(files[2])
    files[1].write_bytes(b"")
    assert not TensorCache().has(files[1], {"x"})
    cache, unwritable = TensorCache(room=0), files[1] / "x.safetensors"
    cache.put(unwritable, value)
    assert torch.equal(cache.get(unwritable)["x"], value["x"])
    cache.put(tmp_path / "deleted" / ".cache" / "x.safetensors", value)
    assert not (tmp_path / "deleted").exists(), "a late value does not bring a deleted project back"
