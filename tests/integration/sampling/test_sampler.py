"""Images where memory is scarce: in tiles, with what is not needed elsewhere, and in words where nothing helps."""

import shutil
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from tests.conftest import CHARACTER
from trainer import families
from trainer.cli.commands import app
from trainer.config import ModelConfig, PictureConfig
from trainer.data import captions, dataset
from trainer.families import Family
from trainer.families.family import TILE
from trainer.sampling import sampler
from trainer.training.inputs import augment

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
def test_what_does_not_fit_is_decoded_in_tiles(micro: Family, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it does not fit is foreseen, or found out."""
    latents, sizes = families.encode_images(micro, pixels)[0], list[int]()

    def note(tile: Tensor) -> None:
        sizes.append(tile.shape[-1] * LARGE // latents.shape[-1])
        if sizes[-1] > TILE:
            run_out()

    whole = families.decode_to_pixels(micro, latents)
    with before_each(Decoder, note):
        found_out = families.decode_to_pixels(micro, latents)
        assert sizes == [LARGE, 512, 256, 512, 256]
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
        sizes.clear()
        assert torch.equal(families.decode_to_pixels(micro, latents), found_out)
        assert sizes == [512, 256, 512, 256]
    assert found_out.shape == whole.shape
    assert float((found_out - whole).abs().mean()) < 0.25 * float(whole.std())
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


def test_a_base_that_was_replaced_is_loaded_again(tiny_sd: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_sd, tmp_path / "base")
    painter, request = sampler.Sampler(), picture(base)
    old = np.asarray(painter.generate(request))
    weights = next((base / "unet").glob("*.safetensors"))
    save_file({name: tensor * 0.5 for name, tensor in load_file(weights).items()}, weights)
    new = np.asarray(painter.generate(request))
    assert not np.array_equal(new, old)
    assert np.array_equal(new, np.asarray(sampler.Sampler().generate(request)))


def generate(base: Path, name: str, *options: object) -> Result:
    prompts = ("--prompt", "a girl", "--prompt", "a girl in\na park")
    arguments = ["generate-regularization", name, *prompts, "--base", base, "--steps", 2, *options]
    return CliRunner().invoke(app, list(map(str, arguments)))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_what_is_missing_is_generated_as_it_was(home: Path, tiny_sd: Path) -> None:
    done = generate(tiny_sd, "girls", "--count", 2, "--seed", 7)
    assert done.exit_code == 0, done.exception
    folder = home / "datasets" / "girls"
    assert "Generated 2, kept 0." in done.output
    first = contents(folder)
    assert "Generated 1, kept 2." in generate(tiny_sd, "girls", "--count", 3, "--seed", 7).output
    whole = contents(folder)
    assert {name: whole[name] for name in first} == first
    texts = {example.name: example.caption for example in dataset.read(folder)}
    assert list(texts) == [f"generated-000{number}.png" for number in (1, 2, 3)]
    assert list(texts.values()) == ["a girl", "a girl in a park", "a girl"]
    removed = folder / "generated-0002.png"
    removed.unlink()
    dataset.write_caption(folder / "generated-0001.png", "a young girl")
    captions.caption_file(folder / "generated-0003.png").unlink()
    assert "Generated 1, kept 2." in generate(tiny_sd, "girls", "--count", 3, "--seed", 7).output
    assert removed.read_bytes() == whole[removed.name][1]
    assert captions.read_caption(folder / "generated-0001.png") == "a young girl"
    assert captions.read_caption(folder / "generated-0003.png") == "", "the user left it without one"
    assert len(dataset.read(folder)) == 3
    out = home / "x.png"
    sample = ["sample", "--prompt", "a girl", "--seed", "9", "--steps", "2", "--base", str(tiny_sd), "--out", str(out)]
    assert CliRunner().invoke(app, sample).exit_code == 0
    assert out.read_bytes() == whole["generated-0003.png"][1]


def test_images_of_other_settings_are_not_mixed_in(character: Path, home: Path, tiny_sd: Path) -> None:
    assert "has images of its own" in str(generate(tiny_sd, "rin", "--count", 1).exception)
    assert generate(tiny_sd, "girls", "--count", 1).exit_code == 0
    before = contents(home / "datasets" / "girls")
    for other in (("--seed", 2), ("--negative", "blurry"), ("--size", "64x32")):
        assert "generated with other settings" in str(generate(tiny_sd, "girls", "--count", 2, *other).exception)
    assert contents(home / "datasets" / "girls") == before
    assert "not a valid name" in str(generate(tiny_sd, "../girls", "--count", 1).exception)
    assert not (home / "girls").exists()
