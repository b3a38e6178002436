"""Recipes of ai-toolkit: its job files, in YAML or JSON.

The meaning was read from ostris/ai-toolkit at commit 27a03a9 (toolkit/config_modules.py, toolkit/optimizer.py,
toolkit/scheduler.py, jobs/process/BaseSDTrainProcess.py, extensions_built_in/sd_trainer/SDTrainer.py).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from limner_extensions.recipes import optimization, sections
from limner_extensions.recipes.draft import NEUTRAL, Draft, Reason, Recipe
from limner_extensions.recipes.families import SPECS, Flow, flow_of, names_of
from limner_extensions.recipes.flow import MORE_LAYERS, Levels, note_family, refusal, set_levels
from limner_extensions.recipes.values import choice, flag, flat, number, pairs, positive, side, text, whole
from trainer.errors import UserError
from trainer.optim.optimizers import ROWS

UNETS = ("is_v2", "is_xl", "is_v_pred")  # of all marks of a model
PRECISIONS = pairs("fp32=fp32 float32=fp32 float=fp32 fp16=fp16 float16=fp16 bf16=bf16 bfloat16=bf16")
DIRECT: dict[str, tuple[str, Callable[[object], Any]]] = {
    "train.batch_size": ("training.batch_size", positive),
    "train.steps": ("training.steps", positive),
    "train.max_grad_norm": ("training.max_grad_norm", number),
    "train.dtype": ("training.precision", choice(PRECISIONS)),
    "train.noise_offset": ("objective.noise_offset", number),
    "train.skip_first_sample": ("preview.at_start", lambda value: not flag(value)),
    "train.reg_weight": ("regularization.weight", number),
    "model.is_v_pred": ("model.prediction_type", lambda value: "v_prediction" if flag(value) else "auto"),
    "datasets.0.caption_dropout_rate": ("captions.dropout", number),
    "datasets.0.shuffle_tokens": ("captions.shuffle", flag),
    "datasets.0.token_dropout_rate": ("captions.tag_dropout", number),
    "datasets.0.keep_tokens": ("captions.keep_tokens", whole),
    "datasets.0.flip_x": ("images.flip", flag),
    "datasets.0.alpha_mask": ("objective.masked_loss", flag),
    "datasets.0.mask_min_value": ("objective.unmasked_weight", number),
    "save.dtype": ("export.precision", choice(PRECISIONS)),
    "save.save_every": ("checkpoint.every", positive),
    "save.max_step_saves_to_keep": ("checkpoint.keep", lambda value: max(2, whole(value))),
    "sample.sample_every": ("preview.every", positive),
    "sample.neg": ("preview.negative_prompt", text),
    "sample.seed": ("preview.seed", whole),
    "sample.guidance_scale": ("preview.guidance", number),
    "sample.sample_steps": ("preview.steps", positive),
}
OF_ANY_MODEL = ("captions.", "images.", "preview.negative_prompt", "preview.seed")  # how paths of ours begin
OPTIMIZERS = pairs("""
    adamw=adamw adam=adamw adamw8bit=adamw8bit adam8bit=adamw8bit lion=lion lion8bit=lion adafactor=adafactor
    prodigy=prodigy prodigy8bit=prodigy
""")
OWN_DECAY = {"adam": 0.0, "adam8bit": 0.0}  # where it is not torch's
KINDS = {"lora": "lora", "locon": "lora", "dora": "lora", "lokr": "lokr"}
SCHEDULES = pairs("constant=constant constant_with_warmup=constant cosine=cosine cosine_with_restarts=cosine")
# Their settings of one preview, by our flags.
OF_PROMPTS = {"w": "width", "h": "height", "d": "seed", "s": "sample_steps", "l": "guidance_scale", "n": "neg"}
OF_PROMPTS |= {"strength": "network_multiplier"}
NAMES = optimization.Names(
    kinds=("train.optimizer",),
    rates=("train.lr", "train.unet_lr", "train.text_encoder_lr"),
    schedule="train.lr_scheduler",
    arguments="train.optimizer_params.",
)
OF_THAT_MACHINE = re.compile(
    r"job$|name$|meta\.|training_folder|sqlite_db_path|device$|trigger_word|logging\.|performance_log_every|"
    r"datasets\.\d+\.(folder_path|dataset_path|mask_path|control_path|trigger_word|default_caption|clip_image_path|"
    r"unconditional_path|inpaint_path)|save\.(push_to_hub|hf_\w+)|model\.(vae_path|(?!assistant_|inference_)\w*lora_path|"
    r"extras_name_or_path|te_name_or_path|unet_path|model_paths)|network\.pretrained_lora_path|train\.(start_step|adapter_assist\w*)"
)
DECIDED_HERE = re.compile(
    r"type$|datasets\.\d+\.(cache_\w+|caption_ext|buckets|bucket_tolerance|num_workers|prefetch_factor|num_frames|"
    r"fast_image_size|replay_transforms|is_reg)|model\.(quantize\w*|qtype\w*|low_vram|arch|is_\w+|dtype|\w+_dtype|"
    r"\w+_device|layer_offloading\w*|auto_memory|compile\w*|block_compile|attn_masking|split_model\w*)|"
    r"train\.(gradient_checkpointing|xformers|sdp|attention_backend|unload_text_encoder|cache_text_embeddings|"
    r"disable_sampling|force_first_sample|linear_timesteps\w*|train_unet|num_train_timesteps)|save\.save_format|"
    r"sample\.(sampler|format|walk_seed|fps|num_frames|sample_start_step|width|height)|network\.(transformer_only|"
    r"split_multistage_loras|layer_offloading|old_lokr_format)"
)
LEFT: Mapping[Reason, re.Pattern[str]] = {"of that machine": OF_THAT_MACHINE, "decided here": DECIDED_HERE}
USUAL = pairs("""
    train.noise_scheduler=ddpm train.content_or_style=balanced train.min_denoising_steps=0
    train.max_denoising_steps=999 train.loss_type=mse train.timestep_type=sigmoid train.cfg_scale=1.0
    train.noise_multiplier=1.0 train.img_multiplier=1.0 train.latent_multiplier=1.0 train.loss_target=noise
    train.ema_config.ema_decay=0.999 network.lokr_factor=-1 network.conv_alpha=None train.pred_scaler=1.0
    datasets.0.scale=1.0 datasets.0.network_weight=1.0 datasets.0.loss_multiplier=1.0 datasets.0.num_repeats=1
    sample.network_multiplier=1 train.diff_output_preservation_multiplier=1.0
    train.blank_prompt_preservation_multiplier=1.0 train.switch_boundary_every=1 datasets.0.num_controls=1
""")


def is_recipe(data: Mapping[str, Any]) -> bool:
    """Return True if a table is a job of ai-toolkit."""
    config = data.get("config")
    return isinstance(config, Mapping) and isinstance(config.get("process"), list) and bool(config["process"])


def read(data: Mapping[str, Any], images: int) -> Recipe:
    """Read a job file; of one for a model that Limner does not train, what holds for any model.

    Raises:
        UserError: it does not train an adapter, or for a model that edits images.
    """
    del images  # the length of a job is in steps
    values = {key.removeprefix("config.process.0.").removeprefix("config."): value for key, value in flat(data).items()}
    draft = Draft(values)
    names = _names(draft)
    if other := next((name for name in names if name not in SPECS), ""):
        return _of_other_model(draft, other)
    spec = draft.spec = next((SPECS[name] for name in names), None)  # none of a UNet that it does not tell
    flow = flow_of(spec)
    draft.leave_matching(LEFT, but=DIRECT)
    draft.settings |= NEUTRAL | {"training.steps": 1000, "objective.unmasked_weight": 0.0}
    if flow:
        draft.leave(
            "no counterpart", "model.attn_masking", "train.noise_offset", "train.snr_gamma", "train.min_snr_gamma"
        )
        draft.leave("no counterpart", "train.linear_timesteps", "train.linear_timesteps2")
        draft.leave("decided here", "network.conv", "network.conv_alpha", "model.is_v_pred")
    draft.apply(DIRECT)
    sections.set_base(draft, "model.name_or_path")
    sections.set_adapter_file(draft, "model.training_adapter", "model.assistant_lora_path")
    sections.set_adapter_file(draft, "preview.adapter", "model.inference_lora_path")
    _set_passes_and_size(draft)
    _set_adapter(draft, flow)
    _set_optimizer(draft)
    _set_objective(draft)
    if spec and spec.guided:
        draft.take("model.guidance", "train.cfg_scale", number, 1.0)
    if spec and flow:
        in_blocks = str(draft.values.get("network.transformer_only", True)).lower() != "false"
        if in_blocks and not draft.settings["adapter.blocks"]:
            draft.set("adapter.blocks", list(names_of(spec).blocks))
        _set_levels(draft, flow)
        note_family(draft, spec)
    _set_previews(draft)
    return draft.finish("ai-toolkit", USUAL)


def _names(draft: Draft) -> list[str]:
    """Return the names of the family that a job is for; [] for one of the UNets that it does not tell."""
    architecture, _, variant = draft.get("model.arch", text, "").lower().partition(":")
    marks = [key.removeprefix("model.") for key in draft.values if key.startswith("model.is_")]
    variants = [mark for mark in marks if draft.get(f"model.{mark}", flag, False) and mark not in UNETS]
    names = [*([architecture] if architecture else []), *variants]
    if "edit" in variant:
        raise refusal()
    if not any(key.startswith("network.") for key in draft.values):
        raise UserError("This recipe of ai-toolkit does not train an adapter.", "Give one with a network.")
    return names


def _of_other_model(draft: Draft, name: str) -> Recipe:
    """Read of a job how images and captions are used, the rank, and the prompts of previews."""
    taken = {key: row for key, row in DIRECT.items() if row[0].startswith(OF_ANY_MODEL)}
    draft.leave_matching(LEFT, but=taken)
    draft.apply(taken)
    _set_sizes(draft)
    _set_rank(draft)
    _set_previews(draft)
    draft.note(
        "The recipe is for {model}, which Limner does not train: the size of images, the use of captions, the rank and "
        "the preview prompts were taken. Choose a base model; the rest is as its preset has it.",
        model=name,
    )
    return draft.finish("ai-toolkit", USUAL)


def _set_passes_and_size(draft: Draft) -> None:
    keys = ("train.gradient_accumulation", "train.gradient_accumulation_steps")
    passes = [count for key in keys if (count := draft.get(key, positive, None))]
    draft.set("training.gradient_accumulation", max(passes, default=1), *keys)
    _set_sizes(draft)


def _set_sizes(draft: Draft) -> None:
    sides = draft.get("datasets.0.resolution", _sides, [(512, True)])
    sections.set_resolutions(draft, sides, draft.values.get("datasets.0.resolution"), "datasets.0.resolution")


def _sides(sizes: object) -> list[sections.Side]:
    """Read one resolution, or a list of several that batches take turns with."""
    return [side(size) for size in (sizes if isinstance(sizes, list) else [sizes])] or [(512, True)]


def _set_adapter(draft: Draft, flow: Flow | None) -> None:
    kind = draft.get("network.type", text, "lora").lower()
    ours = sections.set_kind(draft, kind, KINDS, "network.type")
    rank, alpha_key = _set_rank(draft)
    if ours == "lokr":
        if draft.get("network.lokr_full_rank", flag, True):
            draft.note("ai-toolkit trains whole matrices for LoKr; here they have a rank.")
            draft.leave("no counterpart", "network.lokr_full_rank")
            draft.set("adapter.alpha", float(rank), alpha_key)
        if factor := draft.get("network.lokr_factor", positive, None):
            draft.set("adapter.factor", factor, "network.lokr_factor")
    else:
        draft.set("adapter.dora", kind == "dora", *(["network.type"] * (kind == "dora")))
        draft.take("adapter.dropout", "network.dropout", number, 0.0)
        draft.leave("off", "network.lokr_full_rank", "network.lokr_factor")
    conv = draft.get("network.conv", positive, None)
    draft.set(
        "adapter.targets", "conv" if conv else "attention+ff", "network.conv", *(["network.conv_alpha"] * bool(conv))
    )
    if conv:
        sections.set_convolution_rank(draft, conv, draft.get("network.conv_alpha", number, float(conv)), "network.conv")
    if flow:
        draft.note(MORE_LAYERS, program="ai-toolkit")
    elif not conv:
        draft.note(
            "ai-toolkit also adapts linear layers outside the transformer blocks; Limner does so with the "
            "convolutions only."
        )
    for name in ("network_kwargs.only_if_contains", "only_if_contains"):
        names = draft.values.get(f"network.{name}")
        if isinstance(names, list) and names:
            draft.set("adapter.blocks", [str(item) for item in names], f"network.{name}")


def _set_rank(draft: Draft) -> tuple[int, str]:
    """Set rank and alpha; return the rank, and the setting that says the alpha."""
    rank_key = draft.first("network.rank", "network.linear")
    rank = draft.get(rank_key, positive, None) or 4
    alpha_key = draft.first("network.linear_alpha", "network.alpha")
    draft.set("adapter.rank", rank, rank_key)
    draft.take("adapter.alpha", alpha_key, number, 1.0)
    return rank, alpha_key


def _set_optimizer(draft: Draft) -> None:
    name = draft.get("train.optimizer", text, "adamw").lower()
    kind = OPTIMIZERS.get(name)
    if name in OWN_DECAY and draft.get("train.optimizer_params.weight_decay", number, 0.0):
        kind = None  # Adam adds its decay to the gradients
    if kind is None:
        optimization.leave_optimizer(draft, name, NAMES)
        return
    optimization.set_optimizer(draft, kind, NAMES, OWN_DECAY.get(name))
    common = draft.get("train.lr", number, 1e-6)
    rate = draft.get("train.unet_lr", number, common)
    if ROWS[kind].finds_rate and rate < 0.1:
        rate = 1.0  # as ai-toolkit does
    encoder = draft.get("train.text_encoder_lr", number, rate)
    text_rate = encoder if draft.get("train.train_text_encoder", flag, False) else 0.0
    rate_key = draft.first("train.unet_lr", "train.lr")
    text_key = draft.first("train.text_encoder_lr", "train.train_text_encoder")
    if ROWS[kind].finds_rate and text_rate:
        text_rate = rate
    optimization.set_rates(draft, rate, text_rate, (rate_key,), (text_key, "train.train_text_encoder"))
    draft.leave("replaced", *({"train.lr"} - draft.mapped.keys()))
    _set_schedule(draft)


def _set_schedule(draft: Draft) -> None:
    name, kind = optimization.read_schedule(draft, NAMES, SCHEDULES)
    warmup_key = "train.lr_scheduler_params.num_warmup_steps"
    usual = 1000 if name == "constant_with_warmup" else 0
    warmup = draft.get(warmup_key, whole, usual) if usual else 0
    keys = {"kind": ("train.lr_scheduler",), "warmup": (warmup_key,)}
    optimization.set_schedule(draft, optimization.Schedule(kind, warmup), keys)


def _set_objective(draft: Draft) -> None:
    for key in ("train.snr_gamma", "train.min_snr_gamma"):
        gamma = draft.get(key, number, 0.0)
        if gamma > 0:
            draft.set("objective.weighting", "min-snr", key)
            draft.set("objective.min_snr_gamma", gamma, key)
    if draft.get("train.ema_config.use_ema", flag, False):
        decay = draft.get("train.ema_config.ema_decay", number, 0.999)
        draft.set("training.ema_decay", decay, "train.ema_config.use_ema", "train.ema_config.ema_decay")
    else:
        draft.leave("off", "train.ema_config.ema_decay")
    if draft.get("train.diff_output_preservation", flag, False):
        weight = draft.get("train.diff_output_preservation_multiplier", number, 1.0)
        draft.set("preservation.share", 1.0, "train.diff_output_preservation")
        draft.set("preservation.weight", weight, "train.diff_output_preservation_multiplier")
        draft.set("preservation.generated_share", 0.0, "train.diff_output_preservation")
        class_key = "train.diff_output_preservation_class"
        if class_word := draft.get(class_key, text, ""):
            draft.set("class_word", class_word, class_key)
    else:
        draft.leave("off", "train.diff_output_preservation_class")


def _set_levels(draft: Draft, flow: Flow) -> None:
    """Set the noise levels, as ai-toolkit draws them for flow matching."""
    if draft.get("train.noise_scheduler", text, "flowmatch") == "flowmatch":
        draft.leave("off", "train.noise_scheduler")
    kind = draft.get("train.timestep_type", text, "sigmoid")
    linear = any(draft.values.get(f"train.{key}") is True for key in ("linear_timesteps", "linear_timesteps2"))
    if kind == "sigmoid" and not linear:
        set_levels(draft, flow, Levels("logit-normal"), "train.timestep_type")
    elif kind.endswith("shift") and not linear:
        set_levels(draft, flow, Levels("uniform", None), "train.timestep_type")
    else:
        set_levels(draft, flow, Levels("uniform"), *(["train.timestep_type"] if kind == "linear" else []))


def _set_previews(draft: Draft) -> None:
    size = {"w": draft.values.get("sample.width"), "h": draft.values.get("sample.height")}
    trigger = str(draft.values.get("trigger_word") or "")
    lines, keys = [], []
    prompts = draft.values.get("sample.prompts")
    for prompt in map(str, prompts if isinstance(prompts, list) else []):
        lines.append(" ".join(prompt.split()) if "--" in prompt else sections.prompt_line(prompt, size))
        keys = ["sample.prompts"]
    own_lines, own_keys = sections.numbered_prompts(draft, "sample.samples", OF_PROMPTS, size)
    lines, keys = lines + own_lines, keys + own_keys
    if trigger:
        lines = [text_.replace("[trigger]", trigger) for text_ in lines]
    sections.set_prompts(draft, lines, *keys, "sample.width", "sample.height")
    draft.left = {
        key: reason for key, reason in draft.left.items() if key not in draft.mapped or reason == "no counterpart"
    }
