"""Text encoders of billions of parameters that several families share: T5, Qwen3, Qwen2.5-VL and Qwen3-VL."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.base_models.spec import LargeEncoder, Shape


def t5(component: str, tokenizer: str, *, needed: bool) -> LargeEncoder:
    """Return T5-XXL (Raffel et al. 2019, https://arxiv.org/abs/1910.10683)."""
    return LargeEncoder(
        component=component,
        tokenizer=tokenizer,
        title="T5",
        model="T5EncoderModel",
        texts="t5",
        single_file="text_encoders.t5xxl.transformer.",
        words="shared.weight",
        file_name="t5xxl",
        blocks="block",
        shapes=t5_shapes,
        needed=needed,
        unused=("decoder.", "lm_head."),
        twice=frozenset(("shared.weight", "encoder.embed_tokens.weight")),
        in_adapters=True,
    )


def t5_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of T5's encoder and the shapes of their weights.

    Raffel et al. 2019, section 2.1; its feed-forward layers have two gates (Shazeer 2020, arXiv 2002.05202).
    """
    width, inner, middle = int(config["d_model"]), int(config["num_heads"]) * int(config["d_kv"]), int(config["d_ff"])
    layers: dict[str, Shape] = {f"0.SelfAttention.{name}": (inner, width) for name in ("q", "k", "v")}
    layers |= {"0.SelfAttention.o": (width, inner), "1.DenseReluDense.wo": (width, middle)}
    layers |= {f"1.DenseReluDense.wi_{number}": (middle, width) for number in range(2)}
    return {
        f"encoder.block.{number}.layer.{path}": shape
        for number in range(int(config["num_layers"]))
        for path, shape in layers.items()
    }


def qwen3(size: str) -> LargeEncoder:
    """Return Qwen3 (Qwen Team 2025, https://arxiv.org/abs/2505.09388) of a size, such as `4b`, without its last layer.

    Its files are those of ComfyUI, whose name for it has the size.
    """
    return LargeEncoder(
        component="text_encoder",
        tokenizer="tokenizer",
        title="Qwen3",
        model="Qwen3Model",
        texts="qwen3",
        single_file=f"text_encoders.qwen3_{size}.transformer.",
        words="model.embed_tokens.weight",
        file_name=f"qwen_3_{size}",
        blocks="layers",
        shapes=qwen_shapes,
        first_level=("model.",),
        unused=("lm_head.",),
    )


def qwen_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the linear layers of Qwen2.5 or Qwen3 and the shapes of their weights (section 2)."""
    width, middle = int(config["hidden_size"]), int(config["intermediate_size"])
    head = int(config.get("head_dim") or width // int(config["num_attention_heads"]))
    queries, keys = (int(config[f"num_{name}_heads"]) * head for name in ("attention", "key_value"))
    layers: dict[str, Shape] = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (middle, width),
        "mlp.up_proj": (middle, width),
        "mlp.down_proj": (width, middle),
    }
    return {
        f"layers.{number}.{path}": shape
        for number in range(int(config["num_hidden_layers"]))
        for path, shape in layers.items()
    }


# Qwen2.5-VL 7B (Qwen Team 2025, https://arxiv.org/abs/2502.13923), of which the language model alone is used. Its words
# are those of Qwen3.
QWEN25_VL = replace(
    qwen3("4b"),
    title="Qwen2.5-VL",
    model="Qwen2_5_VLTextModel",
    single_file="text_encoders.qwen25_7b.transformer.",
    file_name="qwen_2.5_vl_7b",
    first_level=("model.language_model.", "model."),
    unused=("visual.", "lm_head."),
)
# Qwen3-VL 4B (Qwen Team 2025, https://arxiv.org/abs/2511.21631), likewise.
QWEN3_VL = replace(
    qwen3("4b"),
    title="Qwen3-VL",
    model="Qwen3VLTextModel",
    single_file="text_encoders.qwen3vl_4b.transformer.",
    file_name="qwen3vl_4b",
    first_level=("model.language_model.", "language_model.", "model."),
    unused=("visual.", "lm_head."),
)
