"""Qwen-Image, Qwen Team 2025, https://arxiv.org/abs/2508.02324: text and image side by side, and Qwen2.5-VL.

20.4 billion parameters. Qwen-Image-2512 has the same layers and settings. Its original code is that of diffusers, so
that files have the names of diffusers, too.
"""

from collections.abc import Mapping
from typing import Any

from trainer.base_models.spec import ADD_QKV, QKV, Blocks, FamilySpec, Shape, Transformer, repeated
from trainer.base_models.specs.large_encoders import QWEN25_VL

_STREAMS = ("img", "txt")
_LAYERS = (
    *(*QKV, *ADD_QKV, "attn.to_out.0", "attn.to_add_out"),
    *(f"{stream}_{layer}" for stream in _STREAMS for layer in ("mlp.net.0.proj", "mlp.net.2", "mod.1")),
)
_OUTSIDE = (
    *("img_in", "txt_in", "norm_out.linear", "proj_out"),
    *(f"time_text_embed.timestep_embedder.linear_{number}" for number in (1, 2)),
)
_TIME_WIDTH = 256  # of the sines that the time is told by


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of the transformer and the shapes of their weights."""
    width, channels = int(config["num_attention_heads"]) * int(config["attention_head_dim"]), int(config["in_channels"])
    block: dict[str, Shape] = dict.fromkeys(_LAYERS, (width, width))
    for stream in _STREAMS:
        block[f"{stream}_mlp.net.0.proj"], block[f"{stream}_mlp.net.2"] = (4 * width, width), (width, 4 * width)
        block[f"{stream}_mod.1"] = (6 * width, width)
    outside: dict[str, Shape] = dict.fromkeys(_OUTSIDE, (width, width))
    outside |= {
        "img_in": (width, channels),
        "txt_in": (width, int(config["joint_attention_dim"])),
        "time_text_embed.timestep_embedder.linear_1": (width, _TIME_WIDTH),
        "norm_out.linear": (2 * width, width),
        "proj_out": (int(config["patch_size"]) ** 2 * int(config["out_channels"]), width),
    }
    return outside | repeated("transformer_blocks", int(config["num_layers"]), block)


SPEC = FamilySpec(
    name="qwen_image",
    title="Qwen-Image",
    model="qwen_image.QwenImage",
    pipeline="QwenImagePipeline",
    pipeline_options={},
    transformer=Transformer(
        blocks={
            "transformer_blocks": Blocks(
                original="transformer_blocks",
                layers={layer: layer for layer in _LAYERS},
                joined={},
                feed_forwards=("img_mlp", "txt_mlp"),
            )
        },
        outside={layer: layer for layer in _OUTSIDE},
        key="transformer_blocks.0.img_mod.1.weight",
        entry="img_in.weight",
        entry_channels=64,
        config_channels=64,
        widths=(3072,),
        text_tokens=512,
        shapes=shapes,
    ),
    vae_scale=0.0,
    vae_channels=16,
    vae_class="AutoencoderKLQwenImage",
    vae_of_videos=True,
    text_encoders=(),
    large_encoder=QWEN25_VL,
    vae_file="qwen_image_vae",
    variants={"flow": 1024},
    step_memory=(81.0, 70.1, 55.8, 41.9, 41.9, 24.1, 5.2),
)
