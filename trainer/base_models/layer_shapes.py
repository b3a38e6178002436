"""Names and weight shapes of the layers of each family's models, from their small configs alone.

Paths are those of the diffusers library. A test holds them against the live models.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from trainer.base_models import CONFIGS, MICRO_FOLDER
from trainer.base_models.detect import FamilyName
from trainer.base_models.layer_names import Shape

MODELS: dict[str, tuple[FamilyName, Path]] = {
    "sd15": ("sd15", CONFIGS / "sd15"),
    "sd21": ("sd21", CONFIGS / "sd21"),
    "sdxl": ("sdxl", CONFIGS / "sdxl"),
    "micro": ("sd15", MICRO_FOLDER),
}


@cache
def known(model: str) -> dict[str, Shape]:
    """Weight shapes by `component:path` (`unet:mid_block...`) of one of the `MODELS`."""
    return of_folder(MODELS[model][1])


def of_folder(folder: Path) -> dict[str, Shape]:
    """The same for a model in diffusers form."""
    found = {f"unet:{path}": shape for path, shape in unet(_settings(folder / "unet")).items()}
    for component in ("text_encoder", "text_encoder_2"):
        if (folder / component).is_dir():
            layers = text_encoder(_settings(folder / component))
            found |= {f"{component}:{path}": shape for path, shape in layers.items()}
    return found


def text_encoder_size(model: str) -> int:
    """Return how many parameters the text encoders of one of the `MODELS` have, but for biases and norms."""
    folder, layers = MODELS[model][1], known(model)
    size = sum(math.prod(shape) for name, shape in layers.items() if name.startswith("text_encoder"))
    for component in sorted({name.partition(":")[0] for name in layers if name.startswith("text_encoder")}):
        settings = _settings(folder / component)
        size += (int(settings["vocab_size"]) + int(settings["max_position_embeddings"])) * int(settings["hidden_size"])
    return size


def _settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return settings


def text_encoder(settings: Mapping[str, Any]) -> dict[str, Shape]:
    """Layers of a CLIP text encoder."""
    width, inner = int(settings["hidden_size"]), int(settings["intermediate_size"])
    layers: dict[str, Shape] = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    layers |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    return {
        f"encoder.layers.{number}.{name}": shape
        for number in range(int(settings["num_hidden_layers"]))
        for name, shape in layers.items()
    }


def unet(settings: Mapping[str, Any]) -> dict[str, Shape]:
    """Linear and convolution layers of a UNet (Rombach et al. 2022, section 3; Podell et al. 2023, section 2.1)."""
    found: dict[str, Shape] = {}
    widths = [int(width) for width in settings["block_out_channels"]]
    time, layers = 4 * widths[0], int(settings["layers_per_block"])
    depths = settings.get("transformer_layers_per_block", 1)
    depths = [depths] * len(widths) if isinstance(depths, int) else list(depths)
    found["conv_in"] = (widths[0], int(settings["in_channels"]), 3, 3)
    found["conv_out"] = (int(settings["out_channels"]), widths[0], 3, 3)
    found |= {"time_embedding.linear_1": (time, widths[0]), "time_embedding.linear_2": (time, time)}
    if added := settings.get("projection_class_embeddings_input_dim"):
        found |= {"add_embedding.linear_1": (time, int(added)), "add_embedding.linear_2": (time, time)}

    def add(place: str, layer: int, into: int, out: int, depth: int) -> None:
        found.update(_residual(f"{place}.resnets.{layer}", into, out, time))
        if depth:
            found.update(_attention(f"{place}.attentions.{layer}", out, depth, settings))

    before = widths[0]
    for block, (kind, width) in enumerate(zip(settings["down_block_types"], widths, strict=True)):
        place, depth = f"down_blocks.{block}", depths[block] if "CrossAttn" in kind else 0
        for layer in range(layers):
            add(place, layer, before, width, depth)
            before = width
        if block < len(widths) - 1:
            found[f"{place}.downsamplers.0.conv"] = (width, width, 3, 3)
    add("mid_block", 0, before, before, depths[-1])
    found.update(_residual("mid_block.resnets.1", before, before, time))
    upwards = widths[::-1]
    for block, (kind, width) in enumerate(zip(settings["up_block_types"], upwards, strict=True)):
        place, depth = f"up_blocks.{block}", depths[-1 - block] if "CrossAttn" in kind else 0
        below = upwards[min(block + 1, len(upwards) - 1)]
        for layer in range(layers + 1):
            skipped = below if layer == layers else width  # what comes over from the way down
            add(place, layer, before + skipped, width, depth)
            before = width
        if block < len(upwards) - 1:
            found[f"{place}.upsamplers.0.conv"] = (width, width, 3, 3)
    return found


def _residual(place: str, into: int, out: int, time: int) -> Iterator[tuple[str, Shape]]:
    yield f"{place}.conv1", (out, into, 3, 3)
    yield f"{place}.time_emb_proj", (out, time)
    yield f"{place}.conv2", (out, out, 3, 3)
    if into != out:
        yield f"{place}.conv_shortcut", (out, into, 1, 1)


def _attention(place: str, width: int, depth: int, settings: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    around: Shape = (width, width) if settings.get("use_linear_projection") else (width, width, 1, 1)
    yield f"{place}.proj_in", around
    yield f"{place}.proj_out", around
    text = int(settings["cross_attention_dim"])
    for number in range(depth):
        block = f"{place}.transformer_blocks.{number}"
        for name, into in (("attn1", width), ("attn2", text)):
            yield f"{block}.{name}.to_q", (width, width)
            yield f"{block}.{name}.to_k", (width, into)
            yield f"{block}.{name}.to_v", (width, into)
            yield f"{block}.{name}.to_out.0", (width, width)
        yield f"{block}.ff.net.0.proj", (8 * width, width)
        yield f"{block}.ff.net.2", (width, 4 * width)
