"""Recipes of OneTrainer: its presets and the configs of its runs, in JSON.

The meaning was read from Nerogar/OneTrainer at commit 23df383 (modules/util/config/, modules/util/create.py,
modules/util/lr_scheduler_util.py, modules/util/optimizer_util.py, modules/util/NamedParameterGroup.py,
modules/modelSetup/mixin/, modules/module/LoRAModule.py).
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from limner_extensions.recipes import optimization, sections
from limner_extensions.recipes.draft import NEUTRAL, Draft, Recipe
from limner_extensions.recipes.families import SPECS, Flow, flow_of, names_of
from limner_extensions.recipes.flow import MORE_LAYERS, Levels, above_zero, note_family, refusal, set_levels, shifted
from limner_extensions.recipes.values import choice, flag, flat, number, pairs, positive, side, text, whole
from trainer.base_models.spec import FamilySpec
from trainer.errors import UserError
from trainer.i18n import _

LINK = re.compile(r"https://huggingface\.co/([^/]+/[^/]+)/(?:blob|resolve)/[^/]+/")  # to a file
SIGNS = {"training_method", "model_type", "base_model_name", "learning_rate_scheduler", "lora_rank"}
PRECISIONS = {"float_32": "fp32", "tfloat_32": "fp32", "float_16": "fp16", "bfloat_16": "bf16"}
DIRECT: dict[str, tuple[str, Callable[[object], Any]]] = {
    "batch_size": ("training.batch_size", positive),
    "gradient_accumulation_steps": ("training.gradient_accumulation", positive),
    "clip_grad_norm": ("training.max_grad_norm", number),
    "train_dtype": ("training.precision", choice(PRECISIONS)),
    "output_dtype": ("export.precision", choice(PRECISIONS)),
    "offset_noise_weight": ("objective.noise_offset", number),
    "min_noising_strength": ("objective.min_timestep", lambda value: int(number(value) * 1000)),
    "max_noising_strength": ("objective.max_timestep", lambda value: int(number(value) * 1000) - 1),
    "text_encoder_layer_skip": ("model.clip_skip", lambda value: whole(value) + 1),
    "text_encoder.dropout_probability": ("captions.dropout", number),
    "force_v_prediction": ("model.prediction_type", lambda value: "v_prediction" if flag(value) else None),
    "force_epsilon_prediction": ("model.prediction_type", lambda value: "epsilon" if flag(value) else None),
    "concepts.0.text.enable_tag_shuffling": ("captions.shuffle", flag),
    "concepts.0.text.keep_tags_count": ("captions.keep_tokens", whole),
    "concepts.0.image.enable_random_flip": ("images.flip", flag),
    "rolling_backup_count": ("checkpoint.keep", lambda value: max(2, whole(value))),
}
OPTIMIZERS = pairs("""
    adamw=adamw adamw_8bit=adamw8bit adam=adamw adam_8bit=adamw8bit lion=lion lion_8bit=lion adafactor=adafactor
    prodigy=prodigy schedule_free_adamw=schedule-free came=came ademamix=ademamix muon=muon muon_adv=muon
    prodigy_plus_schedule_free=prodigy-schedule-free
""")
OWN_DECAY = {"adam": 0.0, "adam_8bit": 0.0, "schedule_free_adamw": 0.01, "muon_adv": 0.0}  # where it is not torch's
SCHEDULES = {"constant": "constant", "linear": "linear", "cosine": "cosine", "cosine_with_hard_restarts": "cosine"}
# Their settings that each of our schedules' follows from.
OF_SCHEDULE = {
    "kind": ("learning_rate_scheduler",),
    "warmup": ("learning_rate_warmup_steps",),
    "min_lr_ratio": ("learning_rate_min_factor",),
    "cycles": ("learning_rate_cycles",),
}
WEIGHTINGS = {"constant": "none", "p2": "p2", "min_snr_gamma": "min-snr", "debiased_estimation": "debiased"}
# Their settings of one preview, by our flags.
OF_PROMPTS = {
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "diffusion_steps",
    "l": "cfg_scale",
    "n": "negative_prompt",
}
LAYERS = {"full": "conv", "": "conv", "blocks": "conv", "attn-mlp": "attention+ff", "attn-only": "attention"}
OF_THAT_MACHINE = re.compile(
    r"cloud\.|secrets\.|concepts\.\d+\.(name|path|seed|concept_stats|text\.prompt_path)|workspace_dir|cache_dir|debug|"
    r"huggingface_cache_dir|output_model_destination|concept_file_name|sample_definition_file_name|lora_model_name|"
    r"save_filename_prefix|vae\.model_name|tensorboard|train_device|temp_device|device_indexes|continue_last_backup|"
    r"__version|include_train_config|.*\.cache_dir|embeddings?\.|additional_embeddings"
)
DECIDED_HERE = re.compile(
    r"latent_caching|clear_cache|only_cache|offline_mode|dataloader_threads|gradient_checkpointing|attention_mechanism|"
    r"enable_(async|activation)_offloading|async_offloading|layer_offload_fraction|fallback_train_dtype|.*weight_dtype$|"
    r"enable_autocast_cache|output_model_format|aspect_ratio_bucketing|multi_gpu|(fused|async)_gradient_reduce|"
    r"gradient_reduce_precision|compile|prevent_overwrites|backup_before_save|rolling_backup|rescale_noise_scheduler|"
    r"sample_(image|video|audio)_format|samples_to_tensorboard|non_ema_sampling|model_type|training_method|samples\.|"
    r"quantization\.|.*(offload_fraction|activation_offloading|svd_dtype|svd_rank|attention_mask)$|save_|validat|"
    r"(unet|transformer|text_encoder(_\d)?)\.(include|gradient_checkpointing)|text_encoder(_\d)?\.model_name|"
    r"unet\.guidance_scale|optimizer\.(fused|foreach|"
    r"stochastic_rounding|optim_bits|min_8bit_size|percentile_clipping|block_wise|is_paged|use_triton)|"
    r"concepts\.\d+\.(enabled|type|include_subdirectories|text\.prompt_source|text\.tag_delimiter)"
)
# Parts of other models, and settings of optimizers that are not chosen.
OFF = re.compile(
    r"(prior|unconditional_transformer|text_encoder_[34]|effnet_encoder|decoder\w*|vae|optimizer_defaults|"
    r"oft_\w+|embedding_\w+|preserve_embedding_norm|bundle_additional_embeddings)(\.|$)"
)
USUAL = pairs("""
    mse_strength=1.0 huber_delta=1.0 vb_loss_strength=1.0 loss_weight_strength=5.0 noising_weight=0.0
    timestep_shift=1.0 learning_rate_cycles=1.0 learning_rate_scaler=NONE ema_decay=0.999 ema_update_step_interval=5
    frames=25 unmasked_probability=0.1 unmasked_weight=0.1 lora_rank=16 lora_alpha=1.0 lokr_dim=16
    lokr_decompose_factor=-1 lokr_dora_on_output=True lokr_vec_trick=True lora_decompose_norm_epsilon=True
    text_encoder_sequence_length=512 text_encoder_2_sequence_length=77 concepts.0.balancing=1.0
    concepts.0.balancing_strategy=REPEATS concepts.0.loss_weight=1.0 concepts.0.image_variations=1
    concepts.0.text_variations=1 concepts.0.image.enable_crop_jitter=True concepts.0.image.resolution_override=512
    concepts.0.text.tag_dropout_mode=FULL layer_filter_preset=full optimizer.eps=1e-08 unet.train=True
    transformer.train=True text_encoder.train=True text_encoder_2.train=True backup_after=30 sample_after=10
    peft_type=LORA lora_weight_dtype=FLOAT_32 loss_scaler=NONE optimizer.clip_threshold=1.0 optimizer.d0=1e-06
    optimizer.decay_rate=-0.8 optimizer.eps2=0.001 optimizer.weight_lr_power=2.0 optimizer.slice_p=11
    optimizer.growth_rate=inf
""") | {"concepts.0.text.caps_randomize_mode": "capslock, title, first, random"}


def is_recipe(data: Mapping[str, Any]) -> bool:
    """Return True if a table is a recipe of OneTrainer."""
    return len(SIGNS & data.keys()) >= 2


def read(data: Mapping[str, Any], images: int) -> Recipe:
    """Read a preset or config.

    Raises:
        UserError: it does not train an adapter, or for a model that Limner does not train.
    """
    draft = Draft(flat(data), images)
    if draft.get("training_method", text, "FINE_TUNE") != "LORA":
        raise UserError("This recipe of OneTrainer does not train an adapter.", "Give one with the method LoRA.")
    spec = SPECS.get(draft.get("model_type", text, "STABLE_DIFFUSION_15"))
    if spec is None:
        raise refusal()
    draft.spec = spec
    draft.leave("off", *(key for key in draft.values if key.startswith("transformer." if spec.unet else "unet.")))
    draft.leave_matching({"of that machine": OF_THAT_MACHINE, "off": OFF, "decided here": DECIDED_HERE}, but=DIRECT)
    draft.settings |= NEUTRAL | {"captions.keep_tokens": 1}
    if flow := flow_of(spec):
        _leave_unused(draft, spec)
    if "clip_grad_norm" in draft.values and draft.values["clip_grad_norm"] is None:
        draft.set("training.max_grad_norm", 0.0, "clip_grad_norm")
    draft.apply(DIRECT)
    _set_base(draft, spec)
    _set_size_and_length(draft)
    _set_adapter(draft, spec)
    _set_optimizer(draft, spec)
    _set_objective(draft, flow)
    if flow:
        note_family(draft, spec)
    _set_previews_and_backups(draft)
    return draft.finish("OneTrainer", USUAL)


def _set_base(draft: Draft, spec: FamilySpec) -> None:
    """Set the base model, or the denoiser that takes the place of its own; a link to a file on the hub names it.

    Raises:
        UserError: it is a model that Limner does not train.
    """
    key, base = f"{spec.denoiser}.model_name", draft.get("base_model_name", text, "")
    if re.search(names_of(spec).refused, base, re.IGNORECASE):
        raise refusal()
    if not (denoiser := draft.get(key, text, "")):
        sections.set_base(draft, "base_model_name")
        return
    draft.values[key] = denoiser = LINK.sub(r"\1/", denoiser)
    draft.leave("replaced", "base_model_name")
    draft.note(
        "The recipe trains {denoiser} in the place of {base}. To see what {base} does with the adapter, name it as the "
        "preview model (preview.base).",
        denoiser=PurePath(denoiser).name[:100],
        base=PurePath(base).name[:100],
    )
    sections.set_base(draft, key)


def _set_size_and_length(draft: Draft) -> None:
    sides = draft.get("resolution", _sides, [(512, True)])
    sections.set_resolutions(draft, sides, draft.values.get("resolution"), "resolution")
    epochs = draft.get("epochs", positive, None) or 100
    repeats = draft.get("concepts.0.balancing", number, 1.0)
    if draft.images:
        batches = math.ceil(draft.images * repeats / draft.settings["training.batch_size"])
        steps = max(1, int(batches * epochs / draft.settings["training.gradient_accumulation"]))
        draft.set("training.steps", steps, "epochs", "concepts.0.balancing")
    else:
        draft.leave("no counterpart", "epochs")
        sections.note_epochs(draft, epochs)


def _sides(sizes: object) -> list[sections.Side]:
    """Read one resolution, or several between commas, of which each batch has one."""
    return [side(size) for size in str(sizes).split(",")]


def _leave_unused(draft: Draft, spec: FamilySpec) -> None:
    """Name what the recipe has for a model of flow matching and Limner does not do, and leave out what nobody uses."""
    part = spec.denoiser
    draft.leave("no counterpart", f"{part}.attention_mask", "offset_noise_weight", "text_encoder_layer_skip")
    guidance = f"{part}.guidance_scale"
    if spec.guided:
        draft.take("model.guidance", guidance, number, 1.0)
    else:
        draft.leave("decided here", guidance)
    draft.leave("decided here", "force_v_prediction", "force_epsilon_prediction", "rescale_noise_scheduler_to_zero_snr")
    large = spec.large_encoder
    if large and str(draft.values.get(key := f"{large.component}.train", True)).lower() != "false":
        draft.leave("no counterpart", key)
        draft.note("The recipe also trains {name}, the large text encoder; Limner does not.", name=large.title)


def _set_adapter(draft: Draft, spec: FamilySpec) -> None:
    kind = draft.get("peft_type", text, "LORA").lower()
    kind = sections.set_kind(draft, kind, {"lora": "lora", "loha": "loha", "lokr": "lokr"}, "peft_type")
    rank_key = "lokr_dim" if kind == "lokr" else "lora_rank"
    draft.set("adapter.rank", draft.get(rank_key, positive, None) or 16, rank_key)
    draft.take("adapter.alpha", "lora_alpha", number, 1.0)
    if kind == "lokr" and (factor := draft.get("lokr_decompose_factor", positive, None)):
        draft.set("adapter.factor", factor, "lokr_decompose_factor")
    if kind == "lora":
        draft.take("adapter.dora", "lora_decompose", flag, False)
        sections.set_dropout(draft, "dropout_probability")
    preset = draft.get("layer_filter_preset", text, "full").lower()
    patterns = [part.strip() for part in draft.get("layer_filter", text, "").split(",") if part.strip()]
    targets = LAYERS.get(preset, "conv")
    ours = "attention+ff" if spec.transformer and targets == "conv" else targets
    draft.set("adapter.targets", ours, "layer_filter_preset")
    if preset in LAYERS and preset:
        draft.leave("off", "layer_filter", "layer_filter_regex")
        if preset != "full":
            draft.set("adapter.blocks", list(names_of(spec).blocks), "layer_filter_preset")
    elif patterns and not draft.get("layer_filter_regex", flag, False):
        draft.set("adapter.blocks", patterns, "layer_filter")
    if spec.transformer and targets != "attention":
        draft.note(MORE_LAYERS, program="OneTrainer")
    elif preset == "attn-mlp":
        draft.note(
            "OneTrainer also adapts the layers around the transformer blocks (proj_in, proj_out); Limner does "
            "so with the convolutions only."
        )


def _set_optimizer(draft: Draft, spec: FamilySpec) -> None:
    rates = ("learning_rate", f"{spec.denoiser}.learning_rate", "text_encoder.learning_rate")
    names = optimization.Names(("optimizer.optimizer",), rates, "learning_rate_scheduler", "optimizer.")
    name = draft.get("optimizer.optimizer", text, "ADAMW").lower()
    kind = OPTIMIZERS.get(name)
    if kind == "adafactor" and draft.get("optimizer.relative_step", flag, False):
        kind = None
    if name in ("adam", "adam_8bit") and draft.get("optimizer.weight_decay", number, 0.0):
        kind = None  # Adam adds its decay to the gradients
    # The steps of its plain Muon are not as large as AdamW's.
    if kind and (name == "muon" or optimization.is_variant(draft, kind, names)):
        kind, name = None, _("{name} in this variant", name=name.upper())
    if kind is None:
        optimization.leave_optimizer(draft, name, names)
        return
    optimization.set_optimizer(draft, kind, names, OWN_DECAY.get(name))
    if kind == "muon":
        draft.take("optimizer.momentum", "optimizer.beta1", number, 0.9)
    _set_rates(draft, spec.denoiser)
    name, kind = optimization.read_schedule(draft, names, SCHEDULES)
    warmup = draft.get("learning_rate_warmup_steps", number, 200.0)
    if warmup > 1:
        warmup = int(warmup / draft.settings["training.gradient_accumulation"])
    cycles = 1
    if name == "cosine_with_hard_restarts":
        cycles = max(1, round(draft.get("learning_rate_cycles", number, 1.0)))
    else:
        draft.leave("off", "learning_rate_cycles")
    minimum = draft.get("learning_rate_min_factor", number, 0.0)
    if kind == "constant":
        draft.leave("off", "learning_rate_min_factor")
    schedule = optimization.Schedule(kind, max(0, warmup), min_lr_ratio=minimum, cycles=cycles)
    optimization.set_schedule(draft, schedule, OF_SCHEDULE)


def _set_rates(draft: Draft, part: str) -> None:
    common = draft.get("learning_rate", number, 3e-6)
    denoiser = draft.get(f"{part}.learning_rate", number, None)
    encoder = draft.get("text_encoder.learning_rate", number, None)
    batch, passes = draft.settings["training.batch_size"], draft.settings["training.gradient_accumulation"]
    scaler = draft.get("learning_rate_scaler", text, "NONE")
    scales = {"NONE": 1, "BATCH": batch, "GLOBAL_BATCH": batch, "GRADIENT_ACCUMULATION": passes}
    scale = math.sqrt(scales.get(scaler, batch * passes))
    trains_text = draft.get("text_encoder.train", flag, True)
    text_rate = (common if encoder is None else encoder) * scale if trains_text else 0.0
    if not draft.get(f"{part}.train", flag, True):
        draft.note("The recipe trains the text encoder only; Limner always trains the denoiser, too.")
    text_key = "learning_rate" if encoder is None and trains_text else "text_encoder.learning_rate"
    rate_keys = (
        "learning_rate" if denoiser is None else f"{part}.learning_rate",
        *(["learning_rate_scaler"] * (scale != 1)),
    )
    rate = float(f"{(common if denoiser is None else denoiser) * scale:.6g}")
    optimization.set_rates(draft, rate, text_rate, rate_keys, (text_key, "text_encoder.train"))
    draft.leave(
        "off", *({"learning_rate", f"{part}.learning_rate", "text_encoder.learning_rate"} - draft.mapped.keys())
    )


def _set_objective(draft: Draft, flow: Flow | None) -> None:
    weightings = {"constant": "none"} if flow else WEIGHTINGS
    weighting = draft.get("loss_weight_fn", choice(weightings), "none")
    draft.set("objective.weighting", weighting, "loss_weight_fn")
    strengths = {"p2": "objective.p2_gamma", "min-snr": "objective.min_snr_gamma"}
    if weighting in strengths:
        draft.take(strengths[weighting], "loss_weight_strength", number, 5.0)
    else:
        draft.leave("off", "loss_weight_strength")
    _set_levels(draft, flow)
    if draft.get("masked_training", flag, False):
        draft.set("objective.masked_loss", True, "masked_training")
        draft.take("objective.unmasked_weight", "unmasked_weight", number, 0.1)
        if not draft.get("normalize_masked_area_loss", flag, False):
            draft.note(sections.MASKS)
        draft.leave("decided here", "normalize_masked_area_loss")
    if draft.get("ema", text, "OFF") != "OFF":
        decay = draft.get("ema_decay", number, 0.999)
        every = draft.get("ema_update_step_interval", positive, None) or 1
        draft.set("training.ema_decay", round(decay ** (1 / every), 7), "ema", "ema_decay", "ema_update_step_interval")
    else:
        draft.leave("off", "ema_decay", "ema_update_step_interval")


def _set_levels(draft: Draft, flow: Flow | None) -> None:
    """Set the noise levels, which models of flow matching shift."""
    bias, weight = draft.get("noising_bias", number, 0.0), draft.get("noising_weight", number, 0.0)
    distribution = draft.get("timestep_distribution", text, "UNIFORM")
    shift: float = draft.get("timestep_shift", above_zero, 1.0)
    keys = ["timestep_distribution", "timestep_shift"]
    if flow and not flow.dynamic:
        draft.leave("decided here", "dynamic_timestep_shifting")
    elif flow and flow.dynamic and draft.get("dynamic_timestep_shifting", flag, False):
        shift = flow.dynamic(int(draft.settings["training.resolution"]))
        keys = ["timestep_distribution", "dynamic_timestep_shifting"]
    if distribution == "LOGIT_NORMAL" and weight > -1:
        levels = Levels("logit-normal", shift, bias, weight + 1)
        keys += ["noising_bias", "noising_weight"]
    elif distribution == "HEAVY_TAIL":
        levels = Levels("mode", shift, mode_scale=weight)
        keys.append("noising_weight")
    else:
        levels = Levels("uniform", shift)
        if distribution != "UNIFORM":
            draft.leave("no counterpart", "timestep_distribution")
    if distribution in ("UNIFORM", "LOGIT_NORMAL", "HEAVY_TAIL"):
        draft.leave("off", *({"noising_bias", "noising_weight", "timestep_shift"} - {*keys}))
    set_levels(draft, flow, levels, *keys)
    ends = {
        "min_noising_strength": ("objective.min_timestep", 0),
        "max_noising_strength": ("objective.max_timestep", 1),
    }
    for key, (path, last) in ends.items():
        if flow and path in draft.mapped.get(key, ()):
            level = shifted(draft.get(key, number, 0.0), flow, levels, int(draft.settings["training.resolution"]))
            draft.set(path, int(1000 * level) - last, key)


def _set_previews_and_backups(draft: Draft) -> None:
    if draft.get("sample_after_unit", text, "MINUTE") == "STEP":
        every = draft.get("sample_after", positive, None)
        draft.set("preview.every", every or 0, "sample_after", "sample_after_unit")
    unit = draft.get("backup_after_unit", text, "MINUTE")
    backup = draft.get("backup_after", positive, None)
    if backup and unit in ("MINUTE", "STEP"):
        path = {"MINUTE": "checkpoint.minutes", "STEP": "checkpoint.every"}[unit]
        draft.set(path, float(backup) if unit == "MINUTE" else backup, "backup_after", "backup_after_unit")
    lines, keys = sections.numbered_prompts(draft, "samples", OF_PROMPTS)
    draft.left = {key: reason for key, reason in draft.left.items() if key not in keys}
    sections.set_prompts(draft, lines, *keys)
