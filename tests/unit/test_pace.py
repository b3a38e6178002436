"""The time of a step on this machine before one was taken."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer import config, devices, storage
from trainer.base_models import layer_shapes
from trainer.base_models.registry import FAMILIES, TRANSFORMERS
from trainer.machine import pace


def seconds(base: str = "micro", **settings: object) -> tuple[float, float] | None:
    return pace.seconds_per_step(config.build({"name": "rin", "dataset": "rin", "model": {"base": base}, **settings}))


def test_a_worker_measures_the_processor_for_the_page(home: Path, tiny_sd: Path) -> None:
    assert seconds() is None
    pace.note(devices.speeds())
    measured = seconds()
    assert 0.001 < measured[0] < measured[1] < 60
    assert seconds(str(tiny_sd)) is None, "a miniature has another shape"
    storage.write(pace._file(), "{broken")
    assert seconds() is None


def test_more_images_of_more_pixels_take_longer(home: Path) -> None:
    storage.write(pace._file(), json.dumps({"small": 1e9, "large": 1e10}))
    plain = {"preservation": {"share": 0.0}, "training": {"batch_size": 1, "text_encoder": False, "resolution": 128}}
    alone, preserving = seconds(**plain), seconds(**plain | {"preservation": {"share": 1.0}})
    assert alone[1] == pytest.approx(2 * pace.of_pass("micro", 128) / (1e9 * min(pace.REACHED)))
    assert preserving[1] / alone[1] == pytest.approx(2.3)
    several = seconds(**plain | {"training": {**plain["training"], "batch_size": 4, "gradient_accumulation": 3}})
    assert several[0] / alone[0] == pytest.approx(12)


def test_a_real_base_is_taken_in_its_own_shape(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.base_models.detect.is_small", lambda _: False)
    models = {"name": "rin", "dataset": "rin", "model": {"base": str(bases["sdxl"])}}
    assert pace.model_of(config.build(models)) == "sdxl"


# The layer that joins the layers of Krea 2's text encoder is applied to each of their values, which is next to nothing.
# Of Chroma the small network for the modulation is counted once: it is applied 344 times, to no more than that. The
# last layer of Z-Image is also applied to the text, of which nothing is kept.
ROUNDED = {"chroma": 0.02, "z_image": 1e-4, "krea2": 1e-6}


SIDES = {"sd15": 256, "micro": 128}  # of the image, in pixels
SIDES |= dict.fromkeys(
    ("sdxl", "sd3-5-medium", "flux", "chroma", "flux2_klein", "qwen_image", "krea2", "z_image", "anima"), 512
)


@pytest.mark.parametrize(
    "model", ["sd15", *(pytest.param(name, marks=pytest.mark.nightly) for name in SIDES if name != "sd15")]
)
def test_a_pass_multiplies_as_often_as_torch_counts(model: str) -> None:
    family, folder = layer_shapes.MODELS[model]
    width = SIDES[model] // layer_shapes.vae_factor(model)
    config: dict[str, Any] = json.loads((folder / FAMILIES[family].denoiser / "config.json").read_text())
    tokens = {"unet": 77, "sd3": 333}.get(family if family in TRANSFORMERS else "unet", 512)
    widths = [
        config.get(f"{name}_dim")
        for name in ("cross_attention", "joint_attention", "cap_feat", "text_hidden", "text_embed")
    ]
    widths.insert(0, config.get("num_text_layers"))
    positions = len(config.get("axes_dims_rope", ()))
    with torch.device("meta"):
        denoiser, once = getattr(diffusers, config["_class_name"]).from_config(config), torch.zeros(1)
        text = torch.zeros(1, tokens, *filter(None, widths))
        pooled = torch.zeros(1, config.get("pooled_projection_dim", 1280))
        latents = torch.zeros(1, config["in_channels"], width, width)
        packed = torch.zeros(1, width * width // 4, config["in_channels"]) if positions else latents
        inputs = {"sample": latents, "hidden_states": packed, "x": [latents[0, :, None]], "timestep": once, "t": once}
        inputs |= {"encoder_hidden_states": text, "cap_feats": [text[0]], "pooled_projections": pooled}
        inputs |= {"img_ids": torch.zeros(width * width // 4, positions), "txt_ids": torch.zeros(tokens, positions)}
        inputs["position_ids"] = torch.zeros(tokens + width * width // 4, positions)
        inputs["img_shapes"] = [(1, width // 2, width // 2)]
        inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6)}
        if config.get("guidance_embeds"):
            inputs["guidance"] = once
        if family == "z_image":  # its own looks at values
            denoiser.rope_embedder = lambda ids: torch.zeros(len(ids), 64, dtype=torch.complex64)
        if family == "anima":  # one frame, with a mask behind its channels
            inputs["hidden_states"] = torch.zeros(1, config["in_channels"] + 1, 1, width, width)
            denoiser.register_to_config(concat_padding_mask=False)
        names = inspect.signature(denoiser.forward).parameters
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            denoiser(**{name: inputs[name] for name in names if name in inputs})
    counted = pytest.approx(counter.get_total_flops(), rel=ROUNDED.get(family, 1e-12))
    assert 2 * pace.of_pass(model, SIDES[model]) == counted
