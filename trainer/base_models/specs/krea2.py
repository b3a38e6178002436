"""Krea 2, Krea 2026, https://www.krea.ai/blog/krea-2-technical-report: text and image as one, and Qwen3-VL.

12.8 billion parameters. It sees twelve layers of Qwen3-VL, which blocks for the text alone fuse before. Krea 2 Raw and
Turbo have the same layers: their folders tell the distilled one, and names of single files.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.base_models.spec import Blocks, FamilySpec, Shape, Transformer, repeated
from trainer.base_models.specs.large_encoders import QWEN3_VL

_TEXT_LAYERS = 12
_LAYERS = {
    **{f"attn.to_{name}": f"attn.w{name}" for name in "qkv"},
    "attn.to_out.0": "attn.wo",
    "attn.to_gate": "attn.gate",
    **{f"ff.{name}": f"mlp.{name}" for name in ("gate", "up", "down")},
}
_BLOCKS = Blocks(original="blocks", layers=_LAYERS, joined={}, feed_forwards=("ff",), tokens="both")
_OUTSIDE = {
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "text_fusion.projector": "txtfusion.projector",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "final_layer.linear": "last.linear",
}


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of the transformer and the shapes of their weights."""
    width, channels = int(config["num_attention_heads"]) * int(config["attention_head_dim"]), int(config["in_channels"])
    text = int(config["text_hidden_dim"])
    outside: dict[str, Shape] = dict.fromkeys(_OUTSIDE, (width, width))
    outside |= {
        "img_in": (width, channels),
        "time_embed.linear_1": (width, int(config["timestep_embed_dim"])),
        "time_mod_proj": (6 * width, width),
        "text_fusion.projector": (1, int(config["num_text_layers"])),
        "txt_in.linear_1": (width, text),
        "final_layer.linear": (channels, width),
    }
    of_text = _block(config, text, "text_")
    for name in ("layerwise", "refiner"):
        outside |= repeated(f"text_fusion.{name}_blocks", int(config[f"num_{name}_text_blocks"]), of_text)
    return outside | repeated("transformer_blocks", int(config["num_layers"]), _block(config, width, ""))


def _block(config: Mapping[str, Any], width: int, of: str) -> dict[str, Shape]:
    """Return the layers of a block, whose keys and values may have fewer heads, and the shapes of their weights."""
    keys = width // int(config[f"{of}num_attention_heads"]) * int(config[f"{of}num_key_value_heads"])
    middle = int(config[f"{of}intermediate_size"])
    layers: dict[str, Shape] = dict.fromkeys(_LAYERS, (width, width))
    layers |= dict.fromkeys(("attn.to_k", "attn.to_v"), (keys, width))
    return layers | {"ff.gate": (middle, width), "ff.up": (middle, width), "ff.down": (width, middle)}


SPEC = FamilySpec(
    name="krea2",
    title="Krea 2",
    model="krea2.Krea2",
    pipeline="Krea2Pipeline",
    pipeline_options={},
    transformer=Transformer(
        blocks={
            "transformer_blocks": _BLOCKS,
            "text_fusion.layerwise_blocks": replace(
                _BLOCKS, original="txtfusion.layerwise_blocks", tokens="text", apart_layers=_TEXT_LAYERS
            ),
            "text_fusion.refiner_blocks": replace(_BLOCKS, original="txtfusion.refiner_blocks", tokens="text"),
        },
        outside=_OUTSIDE,
        key="txtfusion.projector.weight",
        entry="first.weight",
        entry_channels=64,
        config_channels=64,
        widths=(6144, 2560),
        text_tokens=512,
        shapes=shapes,
        tensors=("lin",),
    ),
    vae_scale=0.0,
    vae_channels=16,
    vae_class="AutoencoderKLQwenImage",
    vae_of_videos=True,
    text_encoders=(),
    large_encoder=QWEN3_VL,
    vae_file="qwen_image_vae",
    variants={"flow": 1024},
    few_steps=8,
    training_adapter="ostris/krea2_turbo_training_adapter/krea2_turbo_training_adapter_v1.safetensors",
    step_memory=(64.3, 48.3, 37.9, 28.1, 28.1, 18.1, 6.5),
)
