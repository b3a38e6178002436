"""FLUX.2 klein, Black Forest Labs 2026, https://github.com/black-forest-labs/flux2: FLUX.1's blocks, and Qwen3.

4 or 9 billion parameters. One modulation serves all blocks of a kind, and in single blocks attention and feed-forward
layer are one layer each, in diffusers too. The distilled model has the layers of the base, so that names alone tell it.
Its folder says it, too.
"""

from collections.abc import Mapping
from typing import Any

from trainer.base_models.spec import ADD_QKV, QKV, Blocks, FamilySpec, Shape, Size, Transformer, repeated
from trainer.base_models.specs.large_encoders import qwen3

_DOUBLE = Blocks(
    original="double_blocks",
    layers={
        "attn.to_qkv": "img_attn.qkv",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_added_qkv": "txt_attn.qkv",
        "attn.to_add_out": "txt_attn.proj",
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
    },
    joined={"attn.to_qkv": QKV, "attn.to_added_qkv": ADD_QKV},
    feed_forwards=("ff", "ff_context"),
)
_SINGLE = Blocks(
    original="single_blocks",
    layers={"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"},
    joined={},
    tokens="both",
)
_TIME_WIDTH = 256  # of the sines that the time is told by
_MODULATIONS = {"double_stream_modulation_img": 6, "double_stream_modulation_txt": 6, "single_stream_modulation": 3}
_OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    **{f"{name}.linear": f"{name}.lin" for name in _MODULATIONS},
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of the transformer and the shapes of their weights; feed-forward layers have gates."""
    width, channels = int(config["num_attention_heads"]) * int(config["attention_head_dim"]), int(config["in_channels"])
    middle = int(width * float(config["mlp_ratio"]))
    double: dict[str, Shape] = dict.fromkeys((*QKV, *ADD_QKV, "attn.to_out.0", "attn.to_add_out"), (width, width))
    for part in ("ff", "ff_context"):
        double |= {f"{part}.linear_in": (2 * middle, width), f"{part}.linear_out": (width, middle)}
    single: dict[str, Shape] = {
        "attn.to_qkv_mlp_proj": (3 * width + 2 * middle, width),
        "attn.to_out": (width, width + middle),
    }
    outside: dict[str, Shape] = {
        "x_embedder": (width, channels),
        "context_embedder": (width, int(config["joint_attention_dim"])),
        "time_guidance_embed.timestep_embedder.linear_1": (width, _TIME_WIDTH),
        "time_guidance_embed.timestep_embedder.linear_2": (width, width),
        **{f"{name}.linear": (parts * width, width) for name, parts in _MODULATIONS.items()},
        "norm_out.linear": (2 * width, width),
        "proj_out": (channels, width),
    }
    outside |= repeated("transformer_blocks", int(config["num_layers"]), double)
    return outside | repeated("single_transformer_blocks", int(config["num_single_layers"]), single)


SPEC = FamilySpec(
    name="flux2_klein",
    title="FLUX.2 klein",
    model="flux2_klein.Flux2Klein",
    pipeline="Flux2KleinPipeline",
    pipeline_options={},
    transformer=Transformer(
        blocks={"transformer_blocks": _DOUBLE, "single_transformer_blocks": _SINGLE},
        outside=_OUTSIDE,
        key="single_stream_modulation.lin.weight",
        entry="img_in.weight",
        entry_channels=128,
        config_channels=128,
        widths=(3072, 4096),
        text_tokens=512,
        shapes=shapes,
        swapped=("norm_out.linear",),
    ),
    vae_scale=0.0,
    vae_channels=32,
    vae_class="AutoencoderKLFlux2",
    text_encoders=(),
    large_encoder=qwen3("4b"),
    vae_file="flux2-vae",
    variants={"flow": 1024},
    distilled_names="^(?!.*base).*klein",  # as flux-2-klein-4b and flux-2-klein-base-4b
    few_steps=4,
    step_memory=(25.8, 24.4, 17.1, 9.6, 9.6, 6.9, 3.7),
    sizes=(
        Size(
            title="FLUX.2 klein 9B",
            marks=("double_blocks.7.",),
            settings=(),
            values=(("num_layers", 8),),
            configs="flux2_klein-9b",
            step_memory=(48.6, 45.5, 32.6, 20.5, 20.5, 14.0, 5.9),
            large_encoder=qwen3("8b"),
        ),
    ),
)
