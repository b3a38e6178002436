"""Z-Image and Z-Image Turbo, Z-Image Team 2025, https://arxiv.org/abs/2511.22699: text and image as one, and Qwen3.

6.2 billion parameters. Both models have the same layers, so that names alone tell the distilled one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.base_models.spec import Blocks, FamilySpec, Shape, Transformer, repeated
from trainer.base_models.specs.large_encoders import qwen3

_ATTENTION = {"attention.to_q": 1, "attention.to_k": 1, "attention.to_v": 1}
_MODULATION = "adaLN_modulation.0"
_PATCH = 2  # side of the squares of latents that are a token
_LAYERS = Blocks(
    original="layers",
    layers={
        "attention.to_qkv": "attention.qkv",
        "attention.to_out.0": "attention.out",
        **{f"feed_forward.w{number}": f"feed_forward.w{number}" for number in (1, 2, 3)},
        _MODULATION: _MODULATION,
    },
    joined={"attention.to_qkv": _ATTENTION},
    feed_forwards=("feed_forward",),
    tokens="both",
)
_UNMODULATED = {path: name for path, name in _LAYERS.layers.items() if path != _MODULATION}
# The image passes the first, and text and image are refined each on its own before.
_BLOCKS = {
    "layers": _LAYERS,
    "noise_refiner": replace(_LAYERS, original="noise_refiner", tokens="image"),
    "context_refiner": replace(_LAYERS, original="context_refiner", layers=_UNMODULATED, tokens="text"),
}
_OUTSIDE = {
    "all_x_embedder.2-1": "x_embedder",
    "cap_embedder.1": "cap_embedder.1",
    "t_embedder.mlp.0": "t_embedder.mlp.0",
    "t_embedder.mlp.2": "t_embedder.mlp.2",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
    "all_final_layer.2-1.linear": "final_layer.linear",
}
_TIME_WIDTH, _TIME_MIDDLE = 256, 1024  # of the sines and the vector that the time is told by, and between them


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of the transformer and the shapes of their weights."""
    width, channels = int(config["dim"]), _PATCH * _PATCH * int(config["in_channels"])
    middle, time = int(width / 3 * 8), min(width, _TIME_WIDTH)
    block: dict[str, Shape] = dict.fromkeys((*_ATTENTION, "attention.to_out.0"), (width, width))
    block |= {
        "feed_forward.w1": (middle, width),
        "feed_forward.w2": (width, middle),
        "feed_forward.w3": (middle, width),
    }
    outside: dict[str, Shape] = {
        "all_x_embedder.2-1": (width, channels),
        "cap_embedder.1": (width, int(config["cap_feat_dim"])),
        "t_embedder.mlp.0": (_TIME_MIDDLE, _TIME_WIDTH),
        "t_embedder.mlp.2": (time, _TIME_MIDDLE),
        "all_final_layer.2-1.adaLN_modulation.1": (width, time),
        "all_final_layer.2-1.linear": (channels, width),
    }
    for name, blocks in _BLOCKS.items():
        layers = block | ({_MODULATION: (4 * width, time)} if _MODULATION in blocks.layers else {})
        count = int(config["n_layers" if name == "layers" else "n_refiner_layers"])
        outside |= repeated(name, count, layers)
    return outside


SPEC = FamilySpec(
    name="z_image",
    title="Z-Image",
    model="z_image.ZImage",
    pipeline="ZImagePipeline",
    pipeline_options={},
    transformer=Transformer(
        blocks=_BLOCKS,
        outside=_OUTSIDE,
        key="layers.0.adaLN_modulation.0.weight",
        entry="x_embedder.weight",
        entry_channels=64,
        config_channels=16,
        widths=(3840,),
        text_tokens=512,
        shapes=shapes,
        apart="lycoris_",  # which ComfyUI reads, unlike OneTrainer's names
        tensors=("x_pad_token", "cap_pad_token"),
        unused=("norm_final.weight",),
    ),
    vae_scale=0.3611,
    vae_shift=0.1159,
    vae_channels=16,
    text_encoders=(),
    large_encoder=qwen3("4b"),
    vae_file="ae",
    variants={"flow": 1024},
    few_steps=9,
    training_adapter="ostris/zimage_turbo_training_adapter/zimage_turbo_training_adapter_v2.safetensors",
    step_memory=(48.9, 38.0, 25.9, 14.5, 14.5, 9.4, 3.7),
)
