"""Chroma, 8.9 billion parameters, lodestones 2025, https://huggingface.co/lodestones/Chroma1-HD: FLUX.1 without CLIP.

One small network computes the modulation of all blocks from the time and the number of each, in place of a layer in
each of them (https://huggingface.co/lodestones/Chroma, "Architectural Modifications").
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.base_models.spec import Blocks, FamilySpec, Shape, Transformer
from trainer.base_models.specs import flux
from trainer.base_models.specs.large_encoders import t5

_MODULATION = ("norm1.linear", "norm1_context.linear", "norm.linear")
_GUIDANCE = "distilled_guidance_layer"
_GUIDANCE_LAYERS = 5  # of the published models
_OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    f"{_GUIDANCE}.in_proj": f"{_GUIDANCE}.in_proj",
    f"{_GUIDANCE}.out_proj": f"{_GUIDANCE}.out_proj",
    **{
        f"{_GUIDANCE}.layers.{number}.{name}": f"{_GUIDANCE}.layers.{number}.{original}"
        for number in range(_GUIDANCE_LAYERS)
        for name, original in (("linear_1", "in_layer"), ("linear_2", "out_layer"))
    },
}


def _unmodulated(blocks: Blocks) -> Blocks:
    layers = {path: original for path, original in blocks.layers.items() if path not in _MODULATION}
    return replace(blocks, layers=layers)


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of the transformer and the shapes of their weights."""
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    inputs, hidden = int(config["approximator_num_channels"]), int(config["approximator_hidden_dim"])
    blocks = flux.shapes({**config, "pooled_projection_dim": 0})
    layers = {path: shape for path, shape in blocks.items() if not path.endswith(_MODULATION)}
    guidance: dict[str, Shape] = {"in_proj": (hidden, inputs), "out_proj": (width, hidden)}
    for number in range(int(config["approximator_layers"])):
        guidance |= dict.fromkeys((f"layers.{number}.linear_1", f"layers.{number}.linear_2"), (hidden, hidden))
    outside = {path: shape for path, shape in layers.items() if not path.startswith(("time_text_embed", "norm_out"))}
    return outside | {f"{_GUIDANCE}.{path}": shape for path, shape in guidance.items()}


SPEC = FamilySpec(
    name="chroma",
    title="Chroma",
    model="chroma.Chroma",
    pipeline="ChromaPipeline",
    pipeline_options={},
    transformer=Transformer(
        blocks={
            "transformer_blocks": _unmodulated(flux.DOUBLE),
            "single_transformer_blocks": _unmodulated(flux.SINGLE),
        },
        outside=_OUTSIDE,
        key=f"{_GUIDANCE}.in_proj.weight",
        entry="img_in.weight",
        entry_channels=64,
        config_channels=64,
        widths=(3072,),
        text_tokens=512,
        shapes=shapes,
    ),
    vae_scale=0.3611,
    vae_shift=0.1159,
    vae_channels=16,
    text_encoders=(),
    large_encoder=t5("text_encoder", "tokenizer", needed=True),
    vae_file="ae",
    variants={"flow": 1024},
    step_memory=(48.6, 45.1, 32.4, 19.7, 19.7, 12.3, 4.5),
)
