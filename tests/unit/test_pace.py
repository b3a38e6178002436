"""The time of a step on this machine before one was taken."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer import config, devices, pace, storage
from trainer.base_models import layer_shapes


def seconds(base: str = "micro", **settings: object) -> tuple[float, float] | None:
    return pace.seconds_per_step(config.build({"name": "rin", "dataset": "rin", "model": {"base": base}, **settings}))


def test_a_worker_measures_the_processor_for_the_page(home: Path, tiny_sd: Path) -> None:
    assert seconds() is None
    pace.note(devices.speeds())
    measured = seconds()
    assert measured
    assert 0.001 < measured[0] < measured[1] < 60
    assert seconds(str(tiny_sd)) is None, "a miniature has another shape"
    storage.write(pace._file(), "{broken")
    assert seconds() is None


def test_more_images_of_more_pixels_take_longer(home: Path) -> None:
    storage.write(pace._file(), json.dumps({"small": 1e9, "large": 1e10}))
    plain = {"preservation": {"share": 0.0}, "training": {"batch_size": 1, "text_encoder": False, "resolution": 128}}
    alone, preserving = seconds(**plain), seconds(**plain | {"preservation": {"share": 1.0}})
    assert alone
    assert preserving
    assert alone[1] == pytest.approx(2 * pace.of_pass("micro", 128) / (1e9 * min(pace.REACHED)))
    assert preserving[1] / alone[1] == pytest.approx(2.3)
    several = seconds(**plain | {"training": {**plain["training"], "batch_size": 4, "gradient_accumulation": 3}})
    assert several
    assert several[0] / alone[0] == pytest.approx(12)


def test_a_real_base_is_taken_in_its_own_shape(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(pace._file(), json.dumps({"small": 1e9, "large": 1e10}))
    monkeypatch.setattr("trainer.base_models.detect.is_small", lambda _: False)
    same = {
        "training": {"batch_size": 1, "gradient_accumulation": 1, "text_encoder": False, "resolution": 512},
        "preservation": {"share": 0.0},
    }
    small, large = (seconds(str(bases[family]), **same) for family in ("sd15", "sdxl"))
    assert small
    assert large
    ratio = pace.of_pass("sdxl", 512) / pace.of_pass("sd15", 512)
    assert large[0] / small[0] == pytest.approx(ratio)


WIDTHS = {
    "unet": ("UNet2DConditionModel", 77),
    "sd3": ("SD3Transformer2DModel", 333),
    "flux": ("FluxTransformer2DModel", 512),
    "chroma": ("ChromaTransformer2DModel", 512),
    "flux2_klein": ("Flux2Transformer2DModel", 512),
}


SIDES = {"micro": 128, "sd15": 256, **dict.fromkeys(("sdxl", "sd3-5-medium", "flux", "chroma", "flux2_klein"), 512)}


@pytest.mark.slow
def test_a_pass_of_lists_multiplies_as_often_as_torch_counts() -> None:
    """Text and image are refined each on its own, before both are one."""
    family = "z_image"
    kind = diffusers.ZImageTransformer2DModel
    with torch.device("meta"):
        denoiser = kind.from_config(kind.load_config(layer_shapes.MODELS[family][1] / "transformer"))
        inputs = [torch.zeros(16, 1, 64, 64)], torch.zeros(1), [torch.zeros(512, 2560)]
        denoiser.rope_embedder = lambda ids: torch.zeros(len(ids), 64, dtype=torch.complex64)  # looks at values
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            denoiser(*inputs)
    # The last layer is also applied to the text, of which nothing is kept.
    assert 2 * pace.of_pass(family, 512) == pytest.approx(counter.get_total_flops(), rel=1e-4)


@pytest.mark.parametrize(
    "model", ["sd15", *(pytest.param(name, marks=pytest.mark.nightly) for name in SIDES if name != "sd15")]
)
def test_a_pass_multiplies_as_often_as_torch_counts(model: str) -> None:
    side = SIDES[model]
    family, folder = layer_shapes.MODELS[model]
    name, tokens = WIDTHS.get(family, WIDTHS["unet"])
    kind = getattr(diffusers, name)
    config: dict[str, Any] = kind.load_config(next(folder.glob("unet" if tokens == 77 else "transformer")))
    width = side // layer_shapes.vae_factor(model)
    with torch.device("meta"):
        denoiser, once = kind.from_config(config), torch.zeros(1)
        text = torch.zeros(1, tokens, config.get("cross_attention_dim") or config["joint_attention_dim"])
        pooled = torch.zeros(1, config.get("pooled_projection_dim") or 1280)
        latents = torch.zeros(1, config["in_channels"], width, width)
        inputs: dict[str, Any] = {"hidden_states": latents, "encoder_hidden_states": text, "pooled_projections": pooled}
        if tokens == 77:
            sizes = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6)}
            inputs = {"sample": latents, "encoder_hidden_states": text, "added_cond_kwargs": sizes}
        if family == "flux2_klein":
            packed = torch.zeros(1, width * width // 4, 128)
            ids = {"img_ids": torch.zeros(width * width // 4, 4), "txt_ids": torch.zeros(tokens, 4)}
            inputs = {"hidden_states": packed, "encoder_hidden_states": text, **ids}
        if family in ("flux", "chroma"):
            packed = torch.zeros(1, width * width // 4, 64)
            inputs |= {
                "hidden_states": packed,
                "guidance": once,
                "img_ids": packed[0, :, :3],
                "txt_ids": text[0, :, :3],
            }
        if family == "chroma":
            inputs = {key: value for key, value in inputs.items() if key not in ("guidance", "pooled_projections")}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            denoiser(timestep=once, **inputs)
    # Of Chroma the small network for the modulation is counted once: it is applied 344 times, to no more than that.
    close = pytest.approx(counter.get_total_flops(), rel=0.02) if family == "chroma" else counter.get_total_flops()
    assert 2 * pace.of_pass(model, side) == close
