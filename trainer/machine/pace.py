"""The time of a step on this machine before any was taken: the multiplications in it over those in a second.

For processors only. The time on a card also depends on its memory, and the first steps there tell it within a minute.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from trainer import foreign_text, paths, storage
from trainer.base_models import MICRO, detect, layer_shapes, transformer_names
from trainer.base_models.registry import FAMILIES
from trainer.base_models.spec import Shape, Transformer
from trainer.config import TrainConfig

# Share of the speed of a large product of matrices that whole steps reach on two cores of an AMD EPYC: .56 with the
# shape of Stable Diffusion 1.5 at 256 pixels, .49 at 512, and .81 with micro.
REACHED = (0.45, 0.9)
# Passes for a preserved image and for a caption, as torch counts them in micro: gradients end at the first adapter.
PRESERVED, ENCODED = 2.6, 1.2
CLIP_TOKENS = 77
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(.*)")
# Layers that see the time, the size of the image or a whole prompt, once for each image.
_ONCE = re.compile(
    r"time_|^t_embedder|guidance_layer|add_embedding|norm\d?(_context)?\.linear|norm_out|adaLN_|stream_modulation|_mod\."
)
_OF_TEXT = re.compile(r"(context|cap)_embedder|add_[qkv]_proj|to_add_out|ff_context|txt_(in|mlp)")  # in transformers
_KEYS_OF_TEXT = re.compile(r"attn2\.to_[kv]$")  # in a UNet, and in blocks that the image alone passes


def note(speeds: Mapping[str, float]) -> None:
    """Keep what `devices.speeds` measured, or what was faster earlier: others may use the machine meanwhile."""
    known = _speeds()
    storage.write(_file(), json.dumps({kind: max(speed, known.get(kind, 0.0)) for kind, speed in speeds.items()}))


def is_measured() -> bool:
    """Return True if it is known how fast this processor is, or that there is something faster."""
    return _file().exists()


def seconds_per_step(config: TrainConfig) -> tuple[float, float] | None:
    """Return the least and the most seconds that a step takes on this processor; None if that is not known."""
    training, speed = config.training, _speeds().get("small" if config.model.base == MICRO else "large")
    # The base model is looked at only where there is a processor to compute for.
    if not speed or not (model := model_of(config)):
        return None
    image = sum(_of_image(config, model, side) for side in training.resolutions) / len(training.resolutions)
    total = image * training.batch_size * training.gradient_accumulation
    return total / (speed * max(REACHED)), total / (speed * min(REACHED))


def model_of(config: TrainConfig) -> str:
    """Return the name in `layer_shapes.MODELS` of a base model that is here; "" for others and for miniatures."""
    if config.model.base == MICRO:
        return MICRO
    base = detect.glance(config.model.base, config.model.revision)
    if not base or detect.is_small(detect.locate(config.model.base, config.model.revision)[0]):
        return ""
    if base.size:
        return base.size.configs
    return base.family


def _of_image(config: TrainConfig, model: str, side: int) -> float:
    """Count the multiplications for one image: forward, backward, and what is preserved of it.

    The weights are frozen, so that the gradient only goes through them, which takes as many as the way forward.
    """
    total = of_pass(model, side) * (2 + PRESERVED * config.preservation.share)
    if config.training.text_encoder:
        total += ENCODED * _of_text_encoders(model)
    return total


@cache
def of_pass(model: str, side: int) -> float:
    """Count the multiplications of one pass of a denoiser over a square image.

    Args:
        model: one of `layer_shapes.MODELS`.
        side: of the image, in pixels.
    """
    family = layer_shapes.MODELS[model][0]
    layers = {
        path: shape
        for name, shape in layer_shapes.known(model).items()
        for component, _, path in [name.partition(":")]
        if component == FAMILIES[family].denoiser and len(shape) > 1 and not transformer_names.parts(path, family)
    }
    latents = (side / layer_shapes.vae_factor(model)) ** 2
    if transformer := FAMILIES[family].transformer:
        return _of_transformer(layers, latents / 4, transformer)
    return _of_unet(layers, latents)


def _of_text_encoders(model: str) -> float:
    """Count the multiplications of the text encoders that an adapter can be for, of one prompt."""
    layers = layer_shapes.known(model).items()
    return CLIP_TOKENS * sum(math.prod(shape) for name, shape in layers if name.startswith("text_encoder"))


def _of_unet(layers: Mapping[str, Shape], latents: float) -> float:
    """Each level has a quarter of the places of the one above (Rombach et al. 2022, section 3.3)."""
    levels = len({path.split(".")[1] for path in layers if path.startswith("down_blocks")})
    total = 0.0
    for path, shape in layers.items():
        places = latents / 4 ** _level(path, levels)
        total += _places(path, places, CLIP_TOKENS, _KEYS_OF_TEXT) * math.prod(shape)
        attended = {"attn1.to_q": places, "attn2.to_q": CLIP_TOKENS}.get(path[-10:], 0)
        total += 2 * shape[0] * places * attended
    return total


def _level(path: str, levels: int) -> int:
    """Return the level that a layer of a UNet computes at, 0 the finest."""
    match = _BLOCK.match(path)
    if not match:
        return (levels - 1) * path.startswith("mid_block")
    number = int(match[2]) + match[3].startswith(("downsamplers", "upsamplers"))
    return {"down": number, "up": levels - 1 - number}[match[1]]


def _of_transformer(layers: Mapping[str, Shape], image: float, transformer: Transformer) -> float:
    """Text and image attend to each other as one sequence (Esser et al. 2024, section 4), or one is alone, or looks."""
    text, total = transformer.text_tokens, 0.0
    for path, shape in layers.items():
        blocks = transformer.blocks.get(transformer_names.block(path).rpartition(".")[0])
        tokens = blocks.tokens if blocks else "apart"
        times = blocks.apart_layers if blocks else 1
        seen = {"both": image + text, "text": float(text * times)}.get(tokens, image)
        of_text = {"crossed": _KEYS_OF_TEXT}.get(tokens, _OF_TEXT)
        total += _places(path, seen, text, of_text) * math.prod(shape)
        if path.endswith(("to_q", "to_qkv_mlp_proj")):
            alone = tokens in ("image", "text", "crossed") or ".attn2." in path
            queries = seen if alone else image + text
            keys = times if times > 1 else queries
            if tokens == "crossed" and ".attn2." in path:
                keys = text
            total += 2 * shape[1] * queries * keys
    return total


def _places(path: str, image: float, text: int, of_text: re.Pattern[str]) -> float:
    """Return how often a layer is applied to an image: to each of its places, of its text, or once."""
    if _ONCE.search(path):
        return 1
    if of_text.search(path):
        return text
    return image


def _speeds() -> Mapping[str, float]:
    data = foreign_text.read_own_table(_file())
    return {kind: float(speed) for kind, speed in data.items() if isinstance(speed, int | float) and speed > 0}


def _file() -> Path:
    return paths.outputs() / ".machine.json"
