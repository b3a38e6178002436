"""Images where memory is scarce: in tiles, with what is not needed elsewhere, and in words where nothing helps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder
from PIL import Image
from torch import Tensor, nn

from tests.conftest import CHARACTER
from trainer import families
from trainer.config import ModelConfig, PictureConfig
from trainer.families import Family
from trainer.families.family import TILE
from trainer.sampling import sampler
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


@pytest.mark.slow
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
