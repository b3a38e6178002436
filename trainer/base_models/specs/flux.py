"""FLUX.1 dev, Black Forest Labs 2024, https://github.com/black-forest-labs/flux, and models of the same shape."""

from collections.abc import Mapping
from typing import Any

from trainer.base_models.spec import ADD_QKV, QKV, Blocks, FamilySpec, Need, Shape, Transformer, clip_l, repeated
from trainer.base_models.specs.large_encoders import t5
from trainer.i18n import _

DOUBLE = Blocks(
    original="double_blocks",
    layers={
        "attn.to_qkv": "img_attn.qkv",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_added_qkv": "txt_attn.qkv",
        "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
    },
    joined={"attn.to_qkv": QKV, "attn.to_added_qkv": ADD_QKV},
    feed_forwards=("ff", "ff_context"),
)
SINGLE = Blocks(
    original="single_blocks",
    layers={"to_qkv_mlp": "linear1", "proj_out": "linear2", "norm.linear": "modulation.lin"},
    joined={"to_qkv_mlp": {**QKV, "proj_mlp": 4}},
    tokens="both",
)
_TIME_WIDTH = 256  # of the sines that the time and the guidance are told by
_OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of the transformer and the shapes of their weights.

    In double blocks text and image have weights of their own, in single ones the same, beside each other.
    """
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    double: dict[str, Shape] = dict.fromkeys((*QKV, *ADD_QKV, "attn.to_out.0", "attn.to_add_out"), (width, width))
    for part in ("ff", "ff_context"):
        double |= {f"{part}.net.0.proj": (4 * width, width), f"{part}.net.2": (width, 4 * width)}
    double |= {"norm1.linear": (6 * width, width), "norm1_context.linear": (6 * width, width)}
    single: dict[str, Shape] = dict.fromkeys(QKV, (width, width))
    single |= {"proj_mlp": (4 * width, width), "proj_out": (width, 5 * width), "norm.linear": (3 * width, width)}
    channels = int(config["in_channels"])
    outside: dict[str, Shape] = {
        **dict.fromkeys(_OUTSIDE, (width, width)),
        "x_embedder": (width, channels),
        "context_embedder": (width, int(config["joint_attention_dim"])),
        "time_text_embed.timestep_embedder.linear_1": (width, _TIME_WIDTH),
        "time_text_embed.text_embedder.linear_1": (width, int(config["pooled_projection_dim"])),
        "time_text_embed.guidance_embedder.linear_1": (width, _TIME_WIDTH),
        "norm_out.linear": (2 * width, width),
        "proj_out": (channels, width),
    }
    outside |= repeated("transformer_blocks", int(config["num_layers"]), double)
    return outside | repeated("single_transformer_blocks", int(config["num_single_layers"]), single)


SPEC = FamilySpec(
    name="flux",
    title="FLUX.1",
    model="flux.Flux",
    pipeline="FluxPipeline",
    pipeline_options={},
    transformer=Transformer(
        blocks={"transformer_blocks": DOUBLE, "single_transformer_blocks": SINGLE},
        outside=_OUTSIDE,
        key="double_blocks.0.img_mod.lin.weight",
        entry="img_in.weight",
        entry_channels=64,
        config_channels=64,
        widths=(3072,),
        text_tokens=512,
        shapes=shapes,
        swapped=("norm_out.linear",),
        need=Need(
            key="guidance_in.in_layer.weight",
            setting="guidance_embeds",
            otherwise=_(
                "FLUX.1 schnell, which is distilled to generate in few steps: training would undo that; train on "
                "FLUX.1 dev, its adapters work with both"
            ),
        ),
    ),
    vae_scale=0.3611,
    vae_shift=0.1159,
    vae_channels=16,
    text_encoders=(clip_l(_("text encoder")),),
    large_encoder=t5("text_encoder_2", "tokenizer_2", needed=True),
    vae_file="ae",
    variants={"flow": 1024},
    step_memory=(53.1, 49.6, 37.4, 25.3, 25.3, 15.2, 4.5),
    guided=True,
)
