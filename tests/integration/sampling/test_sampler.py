"""Images where memory is scarce: in tiles, with what is not needed elsewhere, and in words where nothing helps."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel

from tests.conftest import CHARACTER
from tests.integration.training.test_train import finish, settings
from trainer import families, runs
from trainer.base_models import MICRO
from trainer.config import ModelConfig, PictureConfig
from trainer.errors import UserError
from trainer.families import Family
from trainer.families.family import TILE
from trainer.sampling import sampler, server
from trainer.training import augment

LARGE = TILE + 128


@contextmanager
def before_each(kind: type[nn.Module], do: Callable[[Tensor], None]) -> Iterator[None]:
    """Do something with the first argument before each call of a kind of module."""

    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, kind):
            do(arguments[0])

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def run_out(*_: object, **__: object) -> None:
    """Ask this machine for a petabyte."""
    torch.empty(2**50)


@pytest.fixture(scope="module")
def micro() -> Family:
    return families.load(ModelConfig(), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """An image that is a little larger than a tile, the same portrait many times."""
    with Image.open(next(CHARACTER.glob("*.png"))) as image:
        portrait = augment.pixels(image.convert("RGB").resize((128, 128)), (128, 128), flip=False)
    return portrait.repeat(1, LARGE // 128, LARGE // 128)[None]


def picture(base: Path | str, **changes: Any) -> PictureConfig:  # noqa: ANN401 - any settings
    return PictureConfig(base=str(base), prompt="rin, smiling", steps=2, guidance=3.0, out="x.png", **changes)


@pytest.mark.parametrize("scarce", [True, False], ids=["foreseen", "found out"])
def test_what_does_not_fit_is_decoded_in_tiles(
    micro: Family, pixels: Tensor, monkeypatch: pytest.MonkeyPatch, scarce: bool
) -> None:
    latents, sizes = families.encode_images(micro, pixels)[0], list[int]()

    def note(tile: Tensor) -> None:
        sizes.append(tile.shape[-1] * LARGE // latents.shape[-1])
        if sizes[-1] > TILE and not scarce:
            run_out()

    whole = families.decode_to_pixels(micro, latents)
    if scarce:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    with before_each(Decoder, note):
        tiled = families.decode_to_pixels(micro, latents)
    assert sizes[-4:] == [512, 256, 512, 256]
    assert len(sizes) == (4 if scarce else 5)
    assert tiled.shape == whole.shape
    assert float((tiled - whole).abs().mean()) < 0.25 * float(whole.std())
    monkeypatch.undo()
    assert torch.equal(families.decode_to_pixels(micro, latents), whole), "with memory it is as ever"


def test_a_large_image_is_encoded_in_tiles(micro: Family, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, sizes = families.encode_images(micro, pixels)[0], list[int]()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    with before_each(Encoder, lambda tile: sizes.append(tile.shape[-1])):
        mean, std = families.encode_images(micro, pixels)
    assert len(sizes) == 4
    assert max(sizes) == TILE
    assert mean.shape == std.shape == latents.shape
    assert float((mean - latents).abs().mean()) < 0.1 * float(latents.std())


def test_previews_leave_the_text_encoder_where_it_is(character: Path, tiny_sd: Path) -> None:
    """It is asked before the first step, and no more."""
    moments: list[str] = []
    with (
        before_each(CLIPTextModel, lambda _: moments.append("text")),
        before_each(AutoencoderKL, lambda _: moments.append("image")),
        before_each(Decoder, lambda _: moments.append("preview")),
    ):
        finish(runs.create(settings(tiny_sd, preview__every=2)))
    assert moments.count("preview") == 3
    assert "text" not in moments[moments.index("preview") :]


def test_a_sampler_that_runs_out_of_memory_tries_with_less(bases: dict[str, Path]) -> None:
    request = picture(bases["sdxl"])
    expected = np.asarray(sampler.Sampler().generate(request))
    calls = 0

    def once(_: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            run_out()

    with before_each(UNet2DConditionModel, once):
        image = sampler.Sampler().generate(request)
    assert calls == 3
    assert np.array_equal(np.asarray(image), expected)


def test_a_sampler_without_memory_answers_and_goes_on(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = picture(bases["sd15"]).model_copy(update={"out": str(tmp_path / "x.png")})
    scarce = True

    def run_out_while_scarce(_: Tensor) -> None:
        if scarce:
            run_out()

    def lines() -> Iterator[str]:
        nonlocal scarce
        yield request.model_dump_json()
        scarce = False
        yield request.model_dump_json()

    answers = io.StringIO()
    monkeypatch.setattr(sys, "stdin", lines())
    monkeypatch.setattr(sys, "stdout", answers)
    with before_each(UNet2DConditionModel, run_out_while_scarce):
        server.serve()
    ends = [answer for answer in map(json.loads, answers.getvalue().splitlines()) if not answer.get("progress")]
    assert ends[1]["error"] == "There is not enough memory to generate this image."
    assert "smaller size" in ends[1]["remedy"]
    assert ends[2] == {"done": True}
    assert (tmp_path / "x.png").is_file()


def test_an_adapter_that_finds_no_memory_is_not_called_unfit(
    character: Path, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create(settings(bases["sd15"], training__steps=1))
    finish(run)
    pipeline = type(families.load(ModelConfig(base=str(bases["sd15"])), torch.device("cpu"), torch.float32).pipeline())
    monkeypatch.setattr(pipeline, "load_lora_weights", run_out)
    with pytest.raises(UserError, match="not enough memory"):
        sampler.Sampler().generate(picture(bases["sd15"], adapters=((str(run.export), 1.0),)))


@pytest.mark.slow
def test_an_adapter_adds_no_layers_to_a_small_model(character: Path) -> None:
    """In those of micro, peft's layers take a fifth of the time of an image."""
    quick = {"training__steps": 2, "training__batch_size": 1, "training__resolution": 128}
    run = runs.create(settings(Path(MICRO), optimizer__learning_rate=0.05, **quick))
    finish(run)
    generated = sampler.Sampler()
    request = picture(MICRO, adapters=((str(run.export), 1.0),))
    drawn = np.asarray(generated.generate(request), np.int16)
    family = generated._family
    assert family
    assert not [name for name, _ in family.denoiser.named_modules() if "lora" in name]
    base = np.asarray(sampler.generate(family, request), np.int16)
    family.pipeline().load_lora_weights(str(run.folder), weight_name=run.export.name)
    with_layers = np.asarray(sampler.generate(family, request), np.int16)
    assert np.abs(drawn - with_layers).max() <= 1  # rounded otherwise
    assert np.abs(drawn - base).max() > 10
