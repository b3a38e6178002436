"""Write trainer/base_models/configs: configs and tokenizer, which a base model in a single file lacks.

    python scripts/make_configs.py bpe_simple_vocab_16e6.txt.gz

The argument is the merge list of CLIP's tokenizer (OpenAI, MIT license), from https://github.com/openai/CLIP (clip/) or
the packages clip-anytorch and open-clip-torch. vocab.json and merges.txt follow from it by CLIP's own rule
(clip/simple_tokenizer.py): 256 bytes, the same at the end of a word, 48894 merges, start and end token. The settings
are the published ones of each model; test_detect.py counts the parameters that they give. T5's tokenizer, in `t5`, is
as it was published.
"""

import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parent.parent / "trainer" / "base_models" / "configs"
SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGES = 49152 - 256 - 2  # the file has more; CLIP uses these
START, END = "<|startoftext|>", "<|endoftext|>"

UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "sample_size": 64,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
CLIP_L = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "layer_norm_eps": 1e-05,
    "vocab_size": 49408,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
CLIP_H = CLIP_L | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
CLIP_G = CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
CLIP_L_PROJECTED = CLIP_L | {"architectures": ["CLIPTextModelWithProjection"]}
T5_XXL = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "num_heads": 64,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-06,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "dropout_rate": 0.1,
    "vocab_size": 32128,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
MMDIT = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "num_layers": 24,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "in_channels": 64,
    "patch_size": 1,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
CHROMA = {
    "_class_name": "ChromaTransformer2DModel",
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "joint_attention_dim": 4096,
    "in_channels": 64,
    "patch_size": 1,
    "axes_dims_rope": [16, 56, 56],
    "approximator_num_channels": 64,
    "approximator_hidden_dim": 5120,
    "approximator_layers": 5,
}
WIDE_VAE = VAE | {
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
SD_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
XL_INDEX = SD_INDEX | {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}
SD3_INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FLUX_INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
CHROMA_INDEX = {
    "_class_name": "ChromaPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "ChromaTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "model_index.json": SD_INDEX,
        "unet/config.json": UNET | {"cross_attention_dim": 768, "attention_head_dim": 8},
        "vae/config.json": VAE,
        "scheduler/scheduler_config.json": SCHEDULER,
        "text_encoder/config.json": CLIP_L,
    },
    "sd21": {
        "model_index.json": SD_INDEX,
        "unet/config.json": UNET
        | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        "vae/config.json": VAE | {"sample_size": 768},
        "scheduler/scheduler_config.json": SCHEDULER,
        "text_encoder/config.json": CLIP_H,
    },
    "sdxl": {
        "model_index.json": XL_INDEX,
        "unet/config.json": UNET
        | {
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "use_linear_projection": True,
            "block_out_channels": [320, 640, 1280],
            "transformer_layers_per_block": [1, 2, 10],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
        },
        "vae/config.json": VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "scheduler/scheduler_config.json": SCHEDULER,
        "text_encoder/config.json": CLIP_L,
        "text_encoder_2/config.json": CLIP_G,
    },
    "sd3": {
        "model_index.json": SD3_INDEX,
        "transformer/config.json": MMDIT,
        "vae/config.json": WIDE_VAE,
        "scheduler/scheduler_config.json": FLOW,
        "text_encoder/config.json": CLIP_L_PROJECTED,
        "text_encoder_2/config.json": CLIP_G,
        "text_encoder_3/config.json": T5_XXL,
    },
    "flux": {
        "model_index.json": FLUX_INDEX,
        "transformer/config.json": FLUX,
        "vae/config.json": WIDE_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "scheduler/scheduler_config.json": FLOW
        | {
            "use_dynamic_shifting": True,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
        },
        "text_encoder/config.json": CLIP_L,
        "text_encoder_2/config.json": T5_XXL,
    },
    "chroma": {
        "model_index.json": CHROMA_INDEX,
        "transformer/config.json": CHROMA,
        "vae/config.json": WIDE_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "scheduler/scheduler_config.json": FLOW | {"shift": 1.0},
        "text_encoder/config.json": T5_XXL,
    },
    "sd3-5-medium": {
        "transformer/config.json": MMDIT
        | {"dual_attention_layers": [*range(13)], "qk_norm": "rms_norm", "pos_embed_max_size": 384},
    },
    "sd3-5-large": {
        "transformer/config.json": MMDIT
        | {"num_attention_heads": 38, "num_layers": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"},
    },
}


def byte_letters() -> list[str]:
    """Return a printable letter for each of the 256 bytes, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + index) for index in range(len(others)))]


def read_merges(path: Path) -> list[str]:
    """Return the merges that CLIP uses from its compressed list."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit("This is not CLIP's bpe_simple_vocab_16e6.txt.gz.")
    return gzip.decompress(data).decode("utf-8").split("\n")[1 : MERGES + 1]


def texts(merges: list[str]) -> dict[str, str]:
    """Return all files, by their paths under `configs`."""
    files = {f"clip/{name}": text for name, text in tokenizer(merges).items()}
    for family, parts in FAMILIES.items():
        files |= {f"{family}/{name}": json.dumps(part, indent=1) + "\n" for name, part in parts.items()}
    return files


def tokenizer(merges: list[str]) -> dict[str, str]:
    """Return the tokenizer's files, made from CLIP's merges."""
    letters = byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    vocab = {word: number for number, word in enumerate([*words, START, END])}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False, separators=(",", ":")),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=1) + "\n",
    }


def main() -> None:
    """Write all files."""
    for name, text in texts(read_merges(Path(sys.argv[1]))).items():
        path = CONFIGS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
