"""Recipes in the formats of other trainers, made for the tests: their names and structure, our values."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GUI: dict[str, Any] = json.loads((HERE / "gui.json").read_text(encoding="utf-8"))
SCRIPT: dict[str, Any] = {
    "pretrained_model_name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "train_data_dir": "/data/img",
    "network_module": "networks.lora",
    "network_dim": 16,
    "network_alpha": 8,
    "learning_rate": 1e-4,
    "optimizer_type": "AdamW",
    "lr_scheduler": "constant",
    "max_train_steps": 1500,
    "train_batch_size": 4,
    "resolution": "512",
    "mixed_precision": "fp16",
    "seed": 3,
}
# What the GUI writes of FLUX.1 and of SD 3, whatever the model.
FLOW_GUI: dict[str, Any] = json.loads((HERE / "gui-flow.json").read_text(encoding="utf-8"))
FLUX: dict[str, Any] = {
    **SCRIPT,
    "pretrained_model_name_or_path": "/models/flux1-dev.safetensors",
    "resolution": "1024,1024",
    "network_module": "networks.lora_flux",
    "clip_l": "/models/clip_l.safetensors",
    "t5xxl": "/models/t5xxl.safetensors",
    "ae": "/models/ae.safetensors",
    "guidance_scale": 1.0,
    "model_prediction_type": "raw",
    "timestep_sampling": "flux_shift",
    "network_train_unet_only": True,
    "cache_text_encoder_outputs": True,
    "fp8_base": True,
    "network_args": ["split_qkv=True"],
}
SD3: dict[str, Any] = {
    **SCRIPT,
    "pretrained_model_name_or_path": "/models/sd3.5_medium.safetensors",
    "resolution": "1024,1024",
    "network_module": "networks.lora_sd3",
    "clip_g": "/models/clip_g.safetensors",
    "weighting_scheme": "logit_normal",
    "training_shift": 3.0,
    "network_train_unet_only": True,
    "network_args": ["x_mod_dim=0", "context_mod_dim=0"],
}
ANIMA: dict[str, Any] = {
    **SCRIPT,
    "pretrained_model_name_or_path": "/models/anima.safetensors",
    "resolution": "1024,1024",
    "network_module": "networks.lora_anima",
    "qwen3": "/models/qwen3_0.6b.safetensors",
    "vae": "/models/qwen_image_vae.safetensors",
    "attn_mode": "torch",
    "vae_chunk_size": 64,
    "network_train_unet_only": True,
    "cache_text_encoder_outputs": True,
}
ONE_TRAINER: dict[str, Any] = json.loads((HERE / "onetrainer.json").read_text(encoding="utf-8"))
AI_TOOLKIT = (HERE / "ai-toolkit.yaml").read_text(encoding="utf-8")


FLUX_TRAINER: dict[str, Any] = {
    **{key: value for key, value in ONE_TRAINER.items() if key != "unet"},
    "model_type": "FLUX_DEV_1",
    "base_model_name": "black-forest-labs/FLUX.1-dev",
    "loss_weight_fn": "CONSTANT",
    "offset_noise_weight": 0.0,
    "transformer": {
        "train": True,
        "weight_dtype": "NFLOAT_4",
        "learning_rate": 0.0002,
        "guidance_scale": 1.0,
        "attention_mask": False,
    },
    "text_encoder_2": {"train": False, "weight_dtype": "NFLOAT_4"},
    "timestep_distribution": "LOGIT_NORMAL",
    "dynamic_timestep_shifting": True,
    "layer_filter_preset": "blocks",
    "layer_filter": "transformer_block",
}
SD3_TRAINER: dict[str, Any] = {
    **FLUX_TRAINER,
    "model_type": "STABLE_DIFFUSION_35",
    "timestep_distribution": "HEAVY_TAIL",
    "noising_weight": 0.8,
    "timestep_shift": 3.0,
    "min_noising_strength": 0.1,
    "text_encoder_3": {"train": True},
    "layer_filter": "attn",
    "layer_filter_preset": "attn-only",
}
FLUX_JOB = (
    AI_TOOLKIT.replace("noise_scheduler: ddpm", "noise_scheduler: flowmatch")
    .replace("arch: sdxl, quantize: false", "is_flux: true, quantize: true, low_vram: true")
    .replace("min_snr_gamma: 5", "timestep_type: sigmoid")
    .replace("stabilityai/stable-diffusion-xl-base-1.0", "black-forest-labs/FLUX.1-dev")
    .replace(", conv: 32, conv_alpha: 16", "")
)
SD3_JOB = FLUX_JOB.replace("is_flux: true", "is_v3: true").replace("timestep_type: sigmoid", "timestep_type: linear")


def toml(values: dict[str, Any]) -> str:
    """Return flat values as TOML, whose scalars and lists are JSON's."""
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


LYCORIS = {
    "LoRA_type": "LyCORIS/LoHa",
    "conv_dim": 16,
    "conv_alpha": 8,
    "network_dim": 32,
    "network_alpha": 16,
    "use_tucker": True,
    "module_dropout": 0.1,
    "rank_dropout": 0.2,
}
RECIPES: dict[str, str] = {
    "gui.json": json.dumps(GUI),
    "gui-loha.json": json.dumps({**GUI, **LYCORIS}),
    "script.toml": toml(SCRIPT),
    "script-sections.toml": "[model]\nv_parameterization = true\n[network]\n"
    + toml(
        SCRIPT | {"network_args": ["conv_dim=16", "conv_alpha=8", "loraplus_unet_lr_ratio=16", "module_dropout=0.1"]}
    ),
    "script-datasets.toml": toml(
        SCRIPT
        | {
            "max_train_epochs": 4,
            "lr_scheduler": "warmup_stable_decay",
            "lr_decay_steps": 0.2,
            "lr_scheduler_min_lr_ratio": 0.1,
        }
    )
    + """
[general]
shuffle_caption = true
keep_tokens = 2
[[datasets]]
batch_size = 2
resolution = [768, 512]
[[datasets.subsets]]
image_dir = "/data/mira"
num_repeats = 5
caption_dropout_rate = 0.1
[[datasets.subsets]]
image_dir = "/data/reg"
is_reg = true
""",
    "gui-flux.json": json.dumps({**GUI, **FLOW_GUI, "LoRA_type": "Flux1"}),
    "script-flux-odd.toml": toml(
        FLUX
        | {
            "timestep_sampling": "new",
            "discrete_flow_shift": -1,
            "sigmoid_scale": "x",
            "model_prediction_type": "additive",
            "min_snr_gamma": 5,
            "max_timestep": 900,
            "network_args": [
                "train_t5xxl=True",
                "in_dims=[4,4,4,4,4]",
                "train_blocks=double",
                "train_double_block_indices=0-3",
            ],
        }
    ),
    "script-sd3-sqrt.toml": toml(
        SD3
        | {
            "weighting_scheme": "sigma_sqrt",
            "apply_lg_attn_mask": True,
            "t5_dropout_rate": 0.1,
            "network_args": ["emb_dims=[4,4,4,4,4,4]"],
        }
    ),
    "onetrainer.json": json.dumps(ONE_TRAINER),
    "onetrainer-odd.json": json.dumps(
        ONE_TRAINER
        | {
            "optimizer": {"optimizer": "CAME", "weight_decay": 0.01},
            "learning_rate_scheduler": "REX",
            "peft_type": "OFT_2",
            "huber_strength": 1.0,
            "resolution": "512,768",
            "layer_filter_preset": "custom",
            "layer_filter": "up_blocks, mid_block",
            "min_noising_strength": 0.1,
        }
    ),
    "onetrainer-flux-odd.json": json.dumps(
        FLUX_TRAINER
        | {
            "timestep_distribution": "BETA",
            "timestep_shift": 0,
            "dynamic_timestep_shifting": False,
            "loss_weight_fn": "SIGMA",
            "offset_noise_weight": 0.1,
            "text_encoder_layer_skip": 1,
            "text_encoder_2": {"train": True},
            "text_encoder_2_sequence_length": 256,
            "transformer": {"attention_mask": True, "guidance_scale": 3.5, "train": False},
            "layer_filter_preset": "custom",
            "layer_filter": "single_transformer_blocks",
        }
    ),
    "ai-toolkit.yaml": AI_TOOLKIT,
    "ai-toolkit-flux-odd.yaml": FLUX_JOB.replace(
        "timestep_type: sigmoid",
        "timestep_type: weighted\n        min_snr_gamma: 5\n        linear_timesteps2: true\n        noise_offset: 0.1",
    )
    .replace("low_vram: true", "attn_masking: true, is_v_pred: true")
    .replace("type: lora", "type: lora, conv: 8"),
    "ai-toolkit-lokr.yaml": AI_TOOLKIT.replace("type: lora", "type: lokr, lokr_factor: 8").replace(
        "do_cfg: true",
        "lr_scheduler: cosine\n        diff_output_preservation: true\n        diff_output_preservation_class: person",
    ),
    "ai-toolkit-odd.yaml": AI_TOOLKIT.replace("optimizer: adamw8bit", "optimizer: automagic").replace(
        "train_text_encoder: false", "train_text_encoder: true\n        lr_scheduler: step"
    ),
    "limner.toml": 'name = "a"\ndataset = "/home/me/b"\ntrigger = "mirax"\nsubjects = ["c --trigger d"]\n'
    '[adapter]\nkind = "lora"\nrank = 4\n'
    "[optimizer]\nlearning_rate = 0.002\n[training]\nsteps = 5\ndevices = 2\nema = 0.5\nnew_setting = 1\n",
}
