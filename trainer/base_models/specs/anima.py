"""Anima, CircleStone Labs 2026, https://huggingface.co/circlestone-labs/Anima: image beside text, and Qwen3.

2 billion parameters: the transformer of Cosmos-Predict2 (NVIDIA 2025, https://arxiv.org/abs/2501.03575), trained on
anime and other art. A model of its own makes the embeddings that it looks at of Qwen3's, one for each of T5's words.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.base_models.spec import Blocks, Conditioner, FamilySpec, Shape, Transformer, repeated
from trainer.base_models.specs.large_encoders import qwen3

_PATCH = 2  # side of the squares of latents that are a token
_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "output_proj"}
_MODULATION = {
    "norm1": "adaln_modulation_self_attn",
    "norm2": "adaln_modulation_cross_attn",
    "norm3": "adaln_modulation_mlp",
}
_LAYERS = {
    **{f"attn1.{name}": f"self_attn.{original}" for name, original in _ATTENTION.items()},
    **{f"attn2.{name}": f"cross_attn.{original}" for name, original in _ATTENTION.items()},
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
    **{f"{norm}.linear_{number}": f"{name}.{number}" for norm, name in _MODULATION.items() for number in (1, 2)},
}
_OUTSIDE = {
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of the transformer and the shapes of their weights."""
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    text, middle, inner = int(config["text_embed_dim"]), int(config["mlp_ratio"] * width), int(config["adaln_lora_dim"])
    block: dict[str, Shape] = dict.fromkeys(_LAYERS, (width, width))
    block |= {"attn2.to_k": (width, text), "attn2.to_v": (width, text)}
    block |= {"ff.net.0.proj": (middle, width), "ff.net.2": (width, middle)}
    for norm in _MODULATION:
        block |= {f"{norm}.linear_1": (inner, width), f"{norm}.linear_2": (3 * width, inner)}
    outside: dict[str, Shape] = {
        "patch_embed.proj": (width, _PATCH**2 * (int(config["in_channels"]) + 1)),  # and a mask
        "time_embed.t_embedder.linear_1": (width, width),
        "time_embed.t_embedder.linear_2": (3 * width, width),
        "norm_out.linear_1": (inner, width),
        "norm_out.linear_2": (2 * width, inner),
        "proj_out": (_PATCH**2 * int(config["out_channels"]), width),
    }
    return outside | repeated("transformer_blocks", int(config["num_layers"]), block)


SPEC = FamilySpec(
    name="anima",
    title="Anima",
    model="anima.Anima",
    pipeline="AnimaModularPipeline",
    own_pipeline="anima.AnimaPipeline",
    pipeline_options={},
    transformer=Transformer(
        blocks={
            "transformer_blocks": Blocks(
                original="blocks", layers=_LAYERS, joined={}, feed_forwards=("ff",), tokens="crossed"
            )
        },
        outside=_OUTSIDE,
        key="llm_adapter.out_proj.weight",
        entry="x_embedder.proj.1.weight",
        entry_channels=68,
        config_channels=16,
        widths=(2048,),
        text_tokens=512,
        shapes=shapes,
        tensors=("seq", "dim_spatial_range", "dim_temporal_range"),
        unused=("pos_embedder.seq", "pos_embedder.dim_spatial_range", "pos_embedder.dim_temporal_range"),
    ),
    vae_scale=0.0,
    vae_channels=16,
    vae_class="AutoencoderKLQwenImage",
    vae_of_videos=True,
    text_encoders=(),
    large_encoder=replace(qwen3("06b"), file_name="qwen_3_06b"),
    conditioner=Conditioner(
        component="text_conditioner",
        model="AnimaTextConditioner",
        single_file="llm_adapter.",
        tokenizer="t5_tokenizer",
        texts="t5",
    ),
    vae_file="qwen_image_vae",
    variants={"flow": 1024},
    few_steps=8,
    step_memory=(19.3, 16.3, 10.5, 5.0, 5.0, 3.5, 1.7),
)
