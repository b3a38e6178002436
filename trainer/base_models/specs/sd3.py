"""Stable Diffusion 3 and 3.5, Esser et al. 2024, https://arxiv.org/abs/2403.03206, in three sizes."""

from collections.abc import Mapping
from typing import Any

from trainer.base_models.spec import ADD_QKV, QKV, Blocks, FamilySpec, Shape, Size, TextEncoder, Transformer, clip_l
from trainer.base_models.specs.large_encoders import t5
from trainer.i18n import _

_SECOND = {"attn2.to_q": 1, "attn2.to_k": 1, "attn2.to_v": 1}
_BLOCKS = Blocks(
    original="joint_blocks",
    layers={
        "attn.to_qkv": "x_block.attn.qkv",
        "attn.to_out.0": "x_block.attn.proj",
        "attn.to_added_qkv": "context_block.attn.qkv",
        "attn.to_add_out": "context_block.attn.proj",
        "attn2.to_qkv": "x_block.attn2.qkv",
        "attn2.to_out.0": "x_block.attn2.proj",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
    },
    joined={"attn.to_qkv": QKV, "attn.to_added_qkv": ADD_QKV, "attn2.to_qkv": _SECOND},
    feed_forwards=("ff", "ff_context"),
)
_OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_TIME_WIDTH = 256  # of the sines that the time is told by


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of the transformer and the shapes of their weights (section 4, figure 2).

    In the last block the text only informs the image: it goes no further.
    """
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    last, dual = int(config["num_layers"]) - 1, config.get("dual_attention_layers") or ()
    patch, channels = int(config["patch_size"]), int(config["in_channels"])
    layers: dict[str, Shape] = {
        **dict.fromkeys(_OUTSIDE, (width, width)),
        "pos_embed.proj": (width, channels, patch, patch),
        "context_embedder": (width, int(config["joint_attention_dim"])),
        "time_text_embed.timestep_embedder.linear_1": (width, _TIME_WIDTH),
        "time_text_embed.text_embedder.linear_1": (width, int(config["pooled_projection_dim"])),
        "norm_out.linear": (2 * width, width),
        "proj_out": (patch * patch * int(config["out_channels"]), width),
    }
    for number in range(last + 1):
        attention = (*QKV, *ADD_QKV, "attn.to_out.0") + (() if number == last else ("attn.to_add_out",))
        if number in dual:
            attention += (*_SECOND, "attn2.to_out.0")
        block: dict[str, Shape] = dict.fromkeys(attention, (width, width))
        for part in ("ff",) if number == last else ("ff", "ff_context"):
            block |= {f"{part}.net.0.proj": (4 * width, width), f"{part}.net.2": (width, 4 * width)}
        block["norm1.linear"] = (9 * width if number in dual else 6 * width, width)
        block["norm1_context.linear"] = (2 * width if number == last else 6 * width, width)
        layers |= {f"transformer_blocks.{number}.{path}": shape for path, shape in block.items()}
    return layers


SPEC = FamilySpec(
    name="sd3",
    title="Stable Diffusion 3",
    model="sd3.SD3",
    pipeline="StableDiffusion3Pipeline",
    pipeline_options={},
    transformer=Transformer(
        blocks={"transformer_blocks": _BLOCKS},
        outside=_OUTSIDE,
        key="joint_blocks.0.context_block.attn.qkv.weight",
        entry="x_embedder.proj.weight",
        entry_channels=16,
        config_channels=16,
        widths=(1536, 2432),
        text_tokens=333,  # 77 of CLIP and 256 of T5
        shapes=shapes,
        swapped=("norm1_context.linear", "norm_out.linear"),
        tensors=("pos_embed",),
    ),
    vae_scale=1.5305,
    vae_shift=0.0609,
    vae_channels=16,
    text_encoders=(
        clip_l(_("first text encoder"), projected=False),
        TextEncoder(
            component="text_encoder_2",
            title=_("second text encoder"),
            prefix="lora_te2_",
            single_file="text_encoders.clip_g.transformer.",
            embedding="text_encoders.clip_g.transformer.text_model.embeddings.position_embedding.weight",
            width=1280,
            tokenizer="tokenizer_2",
            pad_token="!",
            file_name="clip_g",
        ),
    ),
    large_encoder=t5("text_encoder_3", "tokenizer_3", needed=False),
    variants={"flow": 1024},
    sizes=(
        Size(
            title="Stable Diffusion 3.5 Medium",
            marks=("attn2.",),
            settings=("dual_attention_layers",),
            configs="sd3-5-medium",
            step_memory=(15.3, 13.2, 9.2, 5.7, 5.7, 4.0, 1.9),
        ),
        Size(
            title="Stable Diffusion 3.5 Large",
            marks=("attn.ln_q.",),
            settings=("qk_norm",),
            configs="sd3-5-large",
            step_memory=(36.7, 31.5, 24.2, 17.2, 17.2, 10.5, 3.1),
        ),
    ),
)
