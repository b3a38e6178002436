"""FLUX.1 dev, Black Forest Labs 2024, https://github.com/black-forest-labs/flux, and models of the same shape."""

import math
from collections.abc import Mapping
from typing import Any

from trainer.base_models.spec import (
    T5,
    Blocks,
    FamilySpec,
    Flow,
    FlowScript,
    Need,
    Shape,
    Support,
    Transformer,
    Variant,
    clip_l,
)
from trainer.i18n import _

_QKV = {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1}
_ADDED = {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1}
_DOUBLE = Blocks(
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
    joined={"attn.to_qkv": _QKV, "attn.to_added_qkv": _ADDED},
)
_SINGLE = Blocks(
    original="single_blocks",
    layers={"to_qkv_mlp": "linear1", "proj_out": "linear2", "norm.linear": "modulation.lin"},
    joined={"to_qkv_mlp": {**_QKV, "proj_mlp": 4}},
)


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of the transformer's blocks and the shapes of their weights.

    In double blocks text and image have weights of their own, in single ones the same, beside each other.
    """
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    double: dict[str, Shape] = dict.fromkeys((*_QKV, *_ADDED, "attn.to_out.0", "attn.to_add_out"), (width, width))
    for part in ("ff", "ff_context"):
        double |= {f"{part}.net.0.proj": (4 * width, width), f"{part}.net.2": (width, 4 * width)}
    double |= {"norm1.linear": (6 * width, width), "norm1_context.linear": (6 * width, width)}
    single: dict[str, Shape] = dict.fromkeys(_QKV, (width, width))
    single |= {"proj_mlp": (4 * width, width), "proj_out": (width, 5 * width), "norm.linear": (3 * width, width)}
    return {
        f"{name}.{number}.{path}": shape
        for name, count, layers in (
            ("transformer_blocks", "num_layers", double),
            ("single_transformer_blocks", "num_single_layers", single),
        )
        for number in range(int(config[count]))
        for path, shape in layers.items()
    }


def _shift(side: int) -> float:
    """Return the shift of FLUX.1 dev's scheduler for square images, whose tokens are 16 pixels wide."""
    few, many, low, high = 256, 4096, 0.5, 1.15
    return math.exp(low + (high - low) / (many - few) * ((side / 16) ** 2 - few))


# Read from kohya-ss/sd-scripts at commit 48d368f: flux_train_network.py, library/flux_train_utils.py,
# networks/lora_flux.py.
_MODULATION = ("img_mod_dim", "txt_mod_dim", "single_mod_dim")
_KOHYA = FlowScript(
    word=r"flux1?(?!_?\.?\d)",
    network="networks.lora_flux",
    files=("clip_l", "t5xxl", "ae"),
    mark="ae",
    shift="discrete_flow_shift",
    usual_shift=3.0,
    sampling="flux_shift",
    image_loss=False,
    as_here={
        "model_prediction_type": "raw",
        "guidance_scale": 1.0,
        "t5xxl_max_token_length": 512,
        "apply_t5_attn_mask": False,
    },
    usual={
        "model_prediction_type": "sigma_scaled",
        "guidance_scale": 3.5,
        "t5xxl_max_token_length": 512,
        "apply_t5_attn_mask": False,
    },
    unused=("noise_offset", "min_timestep", "max_timestep"),
    gui=(
        *("timestep_sampling", "discrete_flow_shift", "model_prediction_type", "guidance_scale", "apply_t5_attn_mask"),
        *("t5xxl_max_token_length", "split_qkv", "split_mode", "train_t5xxl", "t5xxl_lr", "train_double_block_indices"),
        "train_single_block_indices",
    ),
    skipped={"attention+ff": _MODULATION, "attention": (*_MODULATION, "img_mlp_dim", "txt_mlp_dim")},
    layers_differ=True,  # a rank for `linear1` and `linear2` of single blocks, where ours adapts the attention
    splits_qkv=False,  # it stopped at that until July 2026 (kohya-ss/sd-scripts#2396)
    blocks={"all": "", "single": "single_transformer_blocks"},
)
# Read from the programs' sources, at the commits that `adapter_files.programs` names. A1111 has no FLUX.
_PROGRAMS = {
    "ComfyUI": Support(frozenset(("joined", "onetrainer", "lycoris", "dotted"))),
    "Forge": Support(frozenset(("joined", "onetrainer", "lycoris", "dotted")), refuses_unmatched=True),
    "InvokeAI": Support(frozenset(("joined", "onetrainer", "dotted"))),
    "sd-scripts": Support(frozenset(("joined",)), kinds=frozenset(("LoRA",))),
    "diffusers": Support(
        frozenset(("joined", "dotted")), kinds=frozenset(("LoRA", "DoRA of PEFT")), refuses_unmatched=True
    ),
    "SD.Next": Support(frozenset(("joined", "onetrainer", "dotted")), alone=frozenset(("joined",))),
}
SPEC = FamilySpec(
    name="flux",
    title="FLUX.1",
    model="flux.Flux",
    pipeline="FluxPipeline",
    pipeline_options={},
    transformer=Transformer(
        blocks={"transformer_blocks": _DOUBLE, "single_transformer_blocks": _SINGLE},
        outside={},
        key="double_blocks.0.img_attn.qkv.weight",
        entry="img_in.weight",
        entry_channels=64,
        widths=(3072,),
        shapes=shapes,
        programs=_PROGRAMS,
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
    metadata_prefixes=("flux-1", "flux1", "flux"),
    text_encoders=(clip_l(_("text encoder")),),
    t5=T5("text_encoder_2", "tokenizer_2", needed=True),
    vae_file="ae",
    # As sd-scripts 48d368fa names them (`library/sai_model_spec.py`, `library/flux_utils.py`).
    variants={"flow": Variant("flux-1-dev", "flux1", 1024)},
    flow=Flow(_shift, _KOHYA),
    recipe_names=("flux", "is_flux", "FLUX_DEV_1"),
    kohya_script="flux_train_network.py",
)
