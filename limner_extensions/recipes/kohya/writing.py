"""Write settings of ours as a config file for kohya's scripts (`--config_file`), and name what they cannot say.

Names and meanings are those of kohya-ss/sd-scripts at commit 48d368f, for LoHa, LoKr and DoRA with
KohakuBlueleaf/LyCORIS at commit f49d30d.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from limner_extensions.recipes import kohya, sections
from limner_extensions.recipes.draft import NEUTRAL
from limner_extensions.recipes.families import NAMES, FlowScript, ScriptedFlow, scripted
from limner_extensions.recipes.flow import MORE_LAYERS
from limner_extensions.recipes.kohya import dataset_config, flow_scripts
from limner_extensions.recipes.values import flat, pairs, words
from trainer.adapter_files.family_rules import METADATA
from trainer.base_models import MICRO, detect
from trainer.base_models.registry import DEFAULT, FAMILIES, FamilyName
from trainer.config import TrainConfig
from trainer.config.adapter import LoHa, LoKr, Lora
from trainer.config.adjustments import planned_rank, planned_steps
from trainer.errors import UserError
from trainer.i18n import _

PRECISIONS = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}
# Their settings that have the value of one of ours, which `kohya.DIRECT` names.
DIRECT = words("""
    seed clip_skip train_batch_size gradient_accumulation_steps max_grad_norm min_timestep max_timestep noise_offset
    ip_noise_gamma caption_dropout_rate validation_split validate_every_n_steps enable_wildcard shuffle_caption
    caption_tag_dropout_rate keep_tokens max_token_length flip_aug save_every_n_steps
""")
# Values that need no saying: what sd-scripts does anyway, or would if the setting it belongs to were used.
UNSAID = NEUTRAL | {
    **dict.fromkeys(words("trigger class_word model.vae model.revision model.training_adapter adapter.start"), ""),
    "regularization.dataset": "",
    "subjects": [],
    "preview.prompts": [],
    "adapter.ranks": [],
    "adapter.rank_dropout": 0.0,
    "adapter.lora_plus_ratio": 1.0,
    "images.background": "white",
    "model.weights": "full",
    "model.guidance": 1.0,
    "export.peft": False,
    "held_out.share": 0.0,
    "held_out.patience": 0,
}
# Those that are said all the same, as people look for them.
ALWAYS = words("training.batch_size training.gradient_accumulation training.max_grad_norm captions.keep_tokens")
# Settings of ours that are said at any value, by others of theirs or in a note; so are all of the optimizer.
SAID = words("""
    model.base model.prediction_type training.resolution training.precision training.steps training.text_encoder
    training.text_encoder_lr_factor adapter.kind adapter.rank adapter.alpha adapter.dora adapter.rslora adapter.dropout
    adapter.lora_plus_ratio schedule.kind schedule.warmup schedule.cycles schedule.cooldown objective.min_snr_gamma
    objective.p2_gamma objective.loss_type objective.huber_c
""")
# Sections and settings that say nothing unless the first one is used.
_OF_OTHERS: dict[str, tuple[str, ...]] = {
    "preservation.share": ("preservation.",),
    "regularization.dataset": ("regularization.",),
    "images.crops": ("images.min_crop",),
    "images.background": ("images.backgrounds",),
    "objective.timestep_sampling": ("objective.logit", "objective.mode"),
    "objective.masked_loss": ("objective.unmasked",),
    "held_out.share": ("held_out.",),
}
_LIMNERS_OWN = words("""
    task name dataset preset record. preview. checkpoint. export. training.devices training.cards training.memory
    training.micro_batches training.gradient_checkpointing training.offload training.exposures captions.shuffles
    model.family
""")
# Optimizers that sd-scripts has names for; it takes others by the dotted name of their class, as Limner does.
OPTIMIZERS = pairs("""
    adamw=AdamW adamw8bit=AdamW8bit lion=Lion adafactor=Adafactor prodigy=Prodigy schedule-free=AdamWScheduleFree
    muon=Muon
""")
ARGUMENTS: dict[str, dict[str, object]] = {"adafactor": {"warmup_init": False}}  # that it would set otherwise


@dataclass(frozen=True)
class Export:
    """A config file of sd-scripts, what it cannot say, and the file of its datasets, "" if that was not asked for."""

    text: str
    notes: tuple[str, ...]
    datasets: str = ""


@dataclass
class _Writer:
    config: TrainConfig
    flow: ScriptedFlow | None
    values: dict[str, Any] = field(default_factory=dict)
    expressed: set[str] = field(default_factory=lambda: {*SAID})
    notes: list[str] = field(default_factory=list)

    def say(self, key: str, value: object, *paths: str) -> None:
        self.values[key] = value
        self.expressed.update(paths)

    def note(self, sentence: str, /, **values: object) -> None:
        self.notes.append(_(sentence, **values))


def export(config: TrainConfig, images: int = 0, *, datasets: bool = False) -> Export:
    """Return a config as a file for sd-scripts; `images` is the number of training images, 0 = unknown.

    `datasets` asks for a file of the datasets, too, which holds their paths.
    """
    family = _family(config)
    flow = scripted(NAMES[family].flow)
    writer = _Writer(config, flow)
    ours = flat(config.model_dump(mode="json"))
    for key in DIRECT:
        if not flow_scripts.is_used(flow, key):
            continue
        path, _read = kohya.DIRECT[key]
        writer.expressed.add(path)
        if path in ALWAYS or ours[path] != UNSAID.get(path):
            writer.say(key, ours[path])
    if "max_timestep" in writer.values:
        writer.values["max_timestep"] += 1  # theirs is not drawn itself
    _say_model(writer)
    _say_length(writer, images)
    _say_adapter(writer, images)
    _say_optimizer(writer)
    _say_schedule(writer)
    _say_objective(writer)
    if flow:
        _say_flow(writer, flow)
    if datasets:
        _say_datasets(writer)
    missing = [
        f"{path} = {value!r}"[:100] for path, value in ours.items() if not _is_settled(path, value, ours, writer)
    ]
    if missing:
        writer.note("sd-scripts has no counterpart for: {settings}.", settings=", ".join(missing))
    document = tomlkit.document()
    images_option = "dataset_config ..." if datasets else "train_data_dir ..."
    options = ["config_file THIS.toml", images_option, "output_dir ..."]
    options += [f"{name} ..." for name in (flow.kohya.files if flow else ())]
    document.add(tomlkit.comment(f"accelerate launch {NAMES[family].script} --{' --'.join(options)}"))
    for key, value in writer.values.items():
        document.add(key, tomlkit.item(value))
    return Export(tomlkit.dumps(document), tuple(writer.notes), dataset_config.write(config) if datasets else "")


def _is_settled(path: str, value: object, ours: dict[str, Any], writer: _Writer) -> bool:
    if path.startswith("optimizer.") or path in writer.expressed or (path in UNSAID and value == UNSAID[path]):
        return True
    for first, start in _OF_OTHERS.items():
        if path.startswith(start) and ours[first] == UNSAID[first]:
            return True
    return path.startswith(_LIMNERS_OWN) and path not in UNSAID


def _family(config: TrainConfig) -> FamilyName:
    facts = detect.glance(config.model.base, config.model.revision) if config.model.family == "auto" else None
    family = facts.family if facts else config.model.family
    if family == "auto":
        return DEFAULT
    if family not in NAMES or not NAMES[family].script:
        raise UserError(
            "Limner cannot write settings of sd-scripts for {family}.",
            "Enter them there by hand, or choose a base model of another family.",
            family=FAMILIES[family].title,
        )
    return family


def _say_model(writer: _Writer) -> None:
    model = writer.config.model
    if model.base == MICRO:
        writer.note("The built-in micro is no model for other programs; name another base model there.")
    else:  # of a path, only the name: the file may be published
        base = model.base if detect.is_hub_name(model.base) else Path(model.base).name
        writer.say("pretrained_model_name_or_path", base)
    if METADATA[_family(writer.config)].v2:
        writer.say("v2", True)
    if model.prediction_type == "v_prediction":
        writer.say("v_parameterization", True)
    side = writer.config.training.resolution
    writer.say("resolution", f"{side},{side}")
    writer.say("enable_bucket", True)
    # sd-scripts refuses a resolution outside of these.
    writer.say("min_bucket_reso", min(256, *writer.config.training.resolutions))
    writer.say("max_bucket_reso", max(1024, 2 * side))
    writer.say("caption_extension", ".txt")
    writer.say("cache_latents", not writer.values.get("flip_aug", False))
    precision = writer.config.training.precision
    if precision in PRECISIONS:
        writer.say("mixed_precision", PRECISIONS[precision])
    writer.say("save_precision", {"fp32": "float"}.get(writer.config.export.precision, writer.config.export.precision))
    writer.say("save_model_as", "safetensors")
    if any(subject.regularization for subject in writer.config.taught):
        writer.say("prior_loss_weight", writer.config.regularization.weight, "regularization.weight")


def _say_datasets(writer: _Writer) -> None:
    config = writer.config
    writer.expressed.update(("trigger", "class_word", "subjects", "training.further_resolutions"))
    writer.expressed.update(("regularization.dataset", "regularization.share"))
    writer.note(
        "sd-scripts takes class_tokens for images without a caption only: have the trigger word in the other captions."
    )
    if any(subject.regularization for subject in config.taught) and config.regularization.share != dataset_config.SHARE:
        writer.note(
            "sd-scripts repeats regularization images until they are as many as the others, whatever "
            "regularization.share says ({share:g}).",
            share=config.regularization.share,
        )


def _say_length(writer: _Writer, images: int) -> None:
    training = writer.config.training
    if training.steps or images:
        writer.say("max_train_steps", planned_steps(training, images, len(writer.config.taught)))
    else:
        writer.note("The number of steps follows from that of the images: set max_train_steps there.")


def _say_adapter(writer: _Writer, images: int) -> None:
    adapter = writer.config.adapter
    rank = planned_rank(adapter, images)
    if not adapter.rank and not images:
        writer.note("The rank follows from the number of images; {rank} is written.", rank=rank)
    lycoris = not isinstance(adapter, Lora) or adapter.dora
    alpha = adapter.alpha if lycoris else adapter.model_copy(update={"rank": rank}).file_alpha
    network = writer.flow.kohya.network if writer.flow else "networks.lora"
    writer.say("network_module", "lycoris.kohya" if lycoris else network)
    writer.say("network_dim", rank)
    writer.say("network_alpha", alpha)
    arguments: dict[str, Any] = {"algo": adapter.kind, **_layers(writer, adapter)} if lycoris else {}
    if writer.flow:
        arguments |= _flow_layers(writer, writer.flow.kohya, lycoris=lycoris)
    elif adapter.targets == "conv":
        arguments |= _convolutions(writer, adapter, rank, alpha)
    elif not lycoris and adapter.targets == "attention+ff":
        writer.expressed.add("adapter.targets")
        writer.note(
            "sd-scripts also adapts the layers around the transformer blocks (proj_in, proj_out), and in the text "
            "encoder the feed-forward layers."
        )
    if adapter.rank_dropout:
        arguments["rank_dropout"] = adapter.rank_dropout
        writer.expressed.add("adapter.rank_dropout")
    if isinstance(adapter, Lora):
        arguments |= _variants(writer, adapter)
        if adapter.start:
            writer.say("network_weights", Path(adapter.start).name, "adapter.start")
    if isinstance(adapter, LoKr):
        arguments["factor"] = adapter.factor
        writer.expressed.add("adapter.factor")
    if arguments:
        writer.say("network_args", [f"{name}={value}" for name, value in arguments.items()])


def _convolutions(writer: _Writer, adapter: Lora | LoHa | LoKr, rank: int, alpha: float) -> dict[str, Any]:
    writer.expressed.add("adapter.targets")
    own = sections.find_convolution_rank(adapter.ranks) if isinstance(adapter, Lora) and not adapter.rslora else None
    if own:
        writer.expressed.add("adapter.ranks")
    return {"conv_dim": own or rank, "conv_alpha": alpha}


def _layers(writer: _Writer, adapter: Lora | LoHa | LoKr) -> dict[str, Any]:
    presets = {"attention": "attn-only", "attention+ff": "attn-mlp", "conv": "full"}
    if writer.flow:  # whose attention "attn-only" does not find
        writer.expressed.update(["adapter.targets"] if adapter.targets == "attention+ff" else [])
        return {"preset": "attn-mlp"}
    writer.expressed.add("adapter.targets")
    return {"preset": presets[adapter.targets]}


def _flow_layers(writer: _Writer, script: FlowScript, *, lycoris: bool) -> dict[str, Any]:
    """Return the arguments that keep sd-scripts to our layers of a transformer, as far as it can be kept."""
    if lycoris and not script.lycoris:
        raise UserError(
            "sd-scripts trains DoRA, LoHa and LoKr with LyCORIS, which does not find the blocks of this model.",
            "Set adapter.kind to lora, without DoRA.",
        )
    arguments, paths = flow_scripts.layers(writer.config.adapter, script) if not lycoris else ({}, set())
    writer.expressed |= paths
    if lycoris or script.layers_differ:
        writer.note(MORE_LAYERS, program="sd-scripts")
    if script.joins_qkv and "split_qkv" not in arguments:
        writer.note(flow_scripts.JOINED_LAYERS)
    return arguments


def _variants(writer: _Writer, adapter: Lora) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if adapter.dora:
        arguments["dora_wd"] = True
        if adapter.rslora:
            arguments["rs_lora"] = True
    if adapter.lora_plus_ratio != 1:
        arguments["loraplus_lr_ratio"] = adapter.lora_plus_ratio
    if adapter.dropout:
        writer.say("network_dropout", adapter.dropout)
    return arguments


def _say_optimizer(writer: _Writer) -> None:
    optimizer, training = writer.config.optimizer, writer.config.training
    rate = optimizer.learning_rate
    writer.say("optimizer_type", OPTIMIZERS.get(optimizer.kind, optimizer.class_path))
    values = optimizer.class_arguments() | ARGUMENTS.get(optimizer.kind, {})
    arguments = [f"{name}={value!r}".replace(", ", ",") for name, value in values.items()]
    writer.say("optimizer_args", arguments)
    if optimizer.row.matrices_only and not writer.flow:
        writer.note(
            "With Stable Diffusion 1, sd-scripts also adapts convolutions (proj_in, proj_out), which Muon refuses."
        )
    writer.say("learning_rate", rate)
    writer.say("unet_lr", rate)
    if training.text_encoder:
        writer.say("text_encoder_lr", float(f"{rate * training.text_encoder_lr_factor:.6g}"))
    else:
        writer.say("network_train_unet_only", True)


def _say_schedule(writer: _Writer) -> None:
    schedule = writer.config.schedule
    values = schedule.model_dump()
    minimum, cycles = values.get("min_lr_ratio", 0.0), values.get("cycles", 1)
    name = {"warmup-stable-decay": "warmup_stable_decay"}.get(schedule.kind, schedule.kind)
    if schedule.kind == "constant" and schedule.warmup:
        name = "constant_with_warmup"
    elif cycles > 1:
        name = "cosine_with_restarts"
        writer.say("lr_scheduler_num_cycles", cycles)
    elif schedule.kind == "cosine" and minimum:
        name = "cosine_with_min_lr"
    if name in ("cosine_with_min_lr", "warmup_stable_decay"):
        writer.say("lr_scheduler_min_lr_ratio", minimum, "schedule.min_lr_ratio")
    elif not minimum:
        writer.expressed.add("schedule.min_lr_ratio")
    if schedule.kind == "warmup-stable-decay":
        writer.say("lr_decay_steps", values["cooldown"])
        writer.note("At the end the rate falls along a cosine there, in a straight line here.")
    writer.say("lr_scheduler", name)
    if schedule.warmup:
        writer.say("lr_warmup_steps", schedule.warmup)  # a float is a share of the steps there, too


def _say_flow(writer: _Writer, flow: ScriptedFlow) -> None:
    objective = writer.config.objective
    for key, value in flow.kohya.as_here.items():
        if value != flow.kohya.usual[key]:
            writer.say(key, value)
    if flow.kohya.usual_guidance:
        writer.say("guidance_scale", writer.config.model.guidance, "model.guidance")
    for key, value in flow_scripts.levels(objective, flow, writer.config.training.resolution).items():
        writer.say(key, value)
    writer.expressed.update(flow_scripts.OUR_LEVELS)
    writer.notes += flow_scripts.level_notes(objective, flow)
    if writer.config.training.text_encoder:
        writer.note("Of the text encoder, Limner adapts the attention only.")


def _say_objective(writer: _Writer) -> None:
    objective = writer.config.objective
    if objective.weighting != "p2":
        writer.expressed.add("objective.weighting")
    if objective.weighting == "min-snr":
        writer.say("min_snr_gamma", objective.min_snr_gamma)
    elif objective.weighting == "debiased":
        writer.say("debiased_estimation_loss", True)
    if objective.loss_type != "l2":
        writer.say("loss_type", "huber")
        writer.say("huber_schedule", "constant" if objective.loss_type == "huber" else "exponential")
        writer.say("huber_c", objective.huber_c)
