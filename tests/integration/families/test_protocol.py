"""Each registered family says what its model is made of; where a model has none of it, a sentence says so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from tests.integration.families.test_families import KINDS, load
from tests.integration.training.test_train import settings
from trainer import families
from trainer.base_models import detect
from trainer.base_models.registry import FAMILIES
from trainer.base_models.spec import Modules
from trainer.errors import UserError
from trainer.families import Family, gradient_checkpointing, loading
from trainer.families.quantize import quantize
from trainer.families.sd import SD
from trainer.rng import generator

ELSEWHERE = Modules(("levels",), ("mlp",), ("levels",))  # names that no model has


@pytest.mark.parametrize("kind", KINDS)
def test_the_named_blocks_are_those_of_the_model(bases: dict[str, Path], kind: str) -> None:
    """Of each kind there are some, and they are all that diffusers has."""
    family = load(bases[kind])
    modules = list(family.denoiser.modules())
    blocks = gradient_checkpointing._Blocks.of(family.denoiser, family.spec.modules)
    assert blocks.feed_forwards == [module for module in modules if type(module).__name__.endswith("FeedForward")] != []
    assert blocks.others == [module for module in modules if isinstance(module, ResnetBlock2D)]
    assert blocks.transformers == [module for module in modules if type(module).__name__.endswith("TransformerBlock")]
    assert len({*blocks.blocks}) == len(blocks.blocks) > 0
    assert family.spec.modules.quantized


def misnamed(base: Path) -> Family:
    """A model whose family has other names for its blocks."""
    family = load(base)
    assert family.spec.unet
    family.spec = replace(family.spec, unet=replace(family.spec.unet, modules=ELSEWHERE))
    return family


def test_what_a_model_does_not_have_is_said(tiny_sd: Path) -> None:
    pytest.importorskip("bitsandbytes")
    family = misnamed(tiny_sd)
    for way in ("feed-forward", "half", "transformers", "all"):
        with pytest.raises(UserError, match=r"no blocks to compute twice under the names that Stable Diffusion 1\.x"):
            gradient_checkpointing.recompute(family, way)
    for share in ("half", "all"):
        with pytest.raises(UserError, match="no blocks whose weights could wait"):
            gradient_checkpointing.recompute(family, "off", share)
    for bits in ("int8", "nf4"):
        with pytest.raises(UserError, match="no layers to quantize"):
            quantize(family.denoiser, bits, family.spec.modules.quantized, family.spec.title)
    gradient_checkpointing.recompute(family, "off")


def test_a_large_text_encoder_may_be_of_any_class(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes fewer bits with the denoiser, and is never in fp16."""
    pytest.importorskip("bitsandbytes")
    t5 = FAMILIES["flux"].large_encoder
    assert t5
    large = replace(t5, component="text_encoder", tokenizer="tokenizer", file_name="clip", blocks="layers")
    monkeypatch.setitem(FAMILIES, "sd15", replace(FAMILIES["sd15"], text_encoders=(), large_encoder=large))
    base = detect.look(tiny_sd)
    assert loading.load_pipeline(tiny_sd, base, None, torch.float16).text_encoder.dtype == torch.bfloat16
    layers = loading.load_pipeline(tiny_sd, base, None, torch.float32).text_encoder
    quantize(layers, "nf4", (large.blocks,), "x")
    changed = {path for path, layer in layers.named_modules() if type(layer).__name__ == "Linear4bit"}
    assert changed
    assert all(".layers." in path for path in changed)


class Halved(SD):
    """A family whose latents are scaled in a way of its own."""

    def encode_latents(self, pixels: Tensor, precision: torch.dtype, *, tiled: bool) -> tuple[Tensor, Tensor]:
        mean, std = super().encode_latents(pixels, precision, tiled=tiled)
        return mean / 2, std / 2

    def decode_latents(self, latents: Tensor, *, tiled: bool) -> Tensor:
        return super().decode_latents(latents * 2, tiled=tiled)


def test_latents_are_the_familys_own(tiny_sd: Path) -> None:
    plain, halved = load(tiny_sd), load(tiny_sd)
    halved.__class__ = Halved
    pixels = torch.rand(1, 3, 64, 64, generator=generator(1)) * 2 - 1
    theirs, ours = (families.encode_images(family, pixels) for family in (plain, halved))
    assert all(torch.equal(half, whole / 2) for half, whole in zip(ours, theirs, strict=True))
    assert torch.equal(families.decode_to_pixels(halved, ours[0]), families.decode_to_pixels(plain, theirs[0]))


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
