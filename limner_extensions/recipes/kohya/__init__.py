"""Recipes of kohya's scripts: files for `--config_file` and `--dataset_config`, presets of the GUI, adapters' metadata.

The meaning was read from kohya-ss/sd-scripts at commit 48d368f (library/train_util.py, library/config_util.py,
library/custom_train_functions.py, train_network.py), bmaltais/kohya_ss at commit 8a524c7 (kohya_gui/lora_gui.py).
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from limner_extensions.recipes import sections
from limner_extensions.recipes.draft import NEUTRAL, Draft, Recipe
from limner_extensions.recipes.families import NAMES, ScriptedFlow, flow_of, scripted
from limner_extensions.recipes.flow import note_family
from limner_extensions.recipes.kohya import dataset_config, flow_scripts, network_args, optimizer_args
from limner_extensions.recipes.values import (
    choice,
    flag,
    flat,
    is_idle,
    number,
    pairs,
    positive,
    side,
    text,
    whole,
    words,
)
from trainer import foreign_text

# Settings that are no part of a recipe, by why they are not. Read from kohya-ss/sd-scripts at commit 48d368f
# (library/train_util.py) and bmaltais/kohya_ss at commit 8a524c7 (kohya_gui/lora_gui.py).
OF_THAT_MACHINE = words("""
    train_data_dir reg_data_dir output_dir output_name logging_dir logging_path vae tokenizer_cache_dir in_json
    dataset_config config_file output_config conditioning_data_dir image_dir metadata_file wandb_api_key
    wandb_run_name log_tracker_name log_tracker_config log_with log_prefix log_config huggingface_repo_id
    huggingface_token huggingface_repo_type huggingface_path_in_repo huggingface_repo_visibility training_comment
    metadata_author metadata_title metadata_description metadata_license metadata_tags extra_accelerate_launch_args
    gpu_ids main_process_port model_list class_tokens name_or_path use_wandb save_state_to_huggingface
    resume_from_huggingface async_upload session_id training_started_at training_finished_at sd_model_name vae_name
    sd_model_hash new_sd_model_hash vae_hash new_vae_hash sd_scripts_commit_hash tag_frequency dataset_dirs
    reg_dataset_dirs bucket_info base_model_version ae clip_l clip_g t5xxl qwen3 llm_adapter_path t5_tokenizer_path
""")
DECIDED_HERE = words("""
    xformers mem_eff_attn sdpa gradient_checkpointing cpu_offload_checkpointing cache_latents cache_latents_to_disk
    skip_cache_check cache_text_encoder_outputs cache_text_encoder_outputs_to_disk vae_batch_size lowram highvram
    max_data_loader_n_workers persistent_data_loader_workers no_half_vae num_cpu_threads_per_process num_processes
    num_machines multi_gpu dynamo_backend dynamo_mode dynamo_use_dynamic dynamo_use_fullgraph torch_compile
    caption_extension caption_extention save_model_as use_safetensors text_encoder_batch_size
    disable_mmap_load_safetensors ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph enable_bucket
    min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale cache_info save_every_n_epochs
    save_last_n_epochs save_last_n_steps save_state save_last_n_epochs_state save_last_n_steps_state
    save_state_on_train_end sample_sampler no_metadata v2 zero_terminal_snr use_shell print_only headless
    num_train_images num_reg_images fp8_base fp8_base_unet blocks_to_swap single_blocks_to_swap double_blocks_to_swap
    mem_eff_save blockwise_fused_optimizers fused_backward_pass t5xxl_device t5xxl_dtype save_clip save_t5xxl
    model_type show_timesteps show_timesteps_resolution num_batches_per_epoch num_epochs num_validation_images
    epoch_done steps total_batch_size attn_mode split_attn vae_chunk_size vae_disable_cache
    unsloth_offload_checkpointing fp8_scaled compile compile_backend compile_mode compile_dynamic compile_fullgraph
    compile_cache_size_limit
""")
# Values that mean nothing, or that what is mapped above already says.
USUAL = pairs("""
    huber_scale=1.0 lr_scheduler_power=1 lr_scheduler_num_cycles=1 unit=1 train_on_input=True caption_separator=,
    multires_noise_discount=0.3 noise_offset_type=Original token_warmup_min=1 weighting_scheme=uniform logit_mean=0.0
    logit_std=1.0 mode_scale=1.29 dataset_repeats=1 huber_schedule=snr huber_c=0.1 save_as_bool=False
    LyCORIS_preset=full constrain=0.0 factor=-1 max_timestep=1000 loss_type=l2
""")

SIGNS = {
    *words("network_dim network_module train_batch_size LoRA_type unet_lr max_train_steps max_train_epochs"),
    "pretrained_model_name_or_path",
}
PRECISIONS = {"no": "fp32", "float": "fp32", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
# Their setting: ours, and how its value is read.
DIRECT: dict[str, tuple[str, Callable[[object], Any]]] = {
    "train_batch_size": ("training.batch_size", positive),
    "gradient_accumulation_steps": ("training.gradient_accumulation", positive),
    "max_grad_norm": ("training.max_grad_norm", number),
    "mixed_precision": ("training.precision", choice(PRECISIONS)),
    "save_precision": ("export.precision", choice(PRECISIONS)),
    "seed": ("seed", whole),
    "v_parameterization": ("model.prediction_type", lambda value: "v_prediction" if flag(value) else "auto"),
    "clip_skip": ("model.clip_skip", positive),
    "noise_offset": ("objective.noise_offset", number),
    "ip_noise_gamma": ("objective.input_perturbation", number),
    "min_timestep": ("objective.min_timestep", whole),
    "max_timestep": ("objective.max_timestep", lambda value: whole(value) - 1),  # theirs is not drawn itself
    "caption_dropout_rate": ("captions.dropout", number),
    "shuffle_caption": ("captions.shuffle", flag),
    "caption_tag_dropout_rate": ("captions.tag_dropout", number),
    "keep_tokens": ("captions.keep_tokens", whole),
    "enable_wildcard": ("captions.multiple", flag),
    "max_token_length": ("captions.max_token_length", positive),
    "flip_aug": ("images.flip", flag),
    "prior_loss_weight": ("regularization.weight", number),
    "validation_split": ("held_out.share", number),
    "validate_every_n_steps": ("held_out.every", positive),
    "sample_every_n_steps": ("preview.every", positive),
    "sample_at_first": ("preview.at_start", flag),
    "save_every_n_steps": ("checkpoint.every", positive),
}
# Some of the GUI's settings begin with the name of the script that they are for.
_SCRIPTS = "|".join(name for row in NAMES.values() if (name := row.script.removesuffix("train_network.py")))
_OF_SCRIPT = re.compile(rf"({_SCRIPTS.replace('_', '')})\d?(_checkbox|_(?P<name>\w+))?$")


def is_recipe(data: Mapping[str, Any]) -> bool:
    """Return True if a table is a recipe of kohya's scripts or of their GUI."""
    return len(SIGNS & lifted(data).keys()) >= 2 or dataset_config.are_in(data)


def read(data: Mapping[str, Any], images: int, *, datasets: bool = False) -> Recipe:
    """Read a TOML or JSON recipe; `datasets` asks for the datasets that it names, too.

    Raises:
        UserError: it is for a model that Limner does not train.
    """
    values = lifted(data)
    if len(SIGNS & values.keys()) < 2:
        return _read_datasets(values, images, data, datasets=datasets)
    gui = "LoRA_type" in values or "max_resolution" in values
    return _read(values, images, gui=gui, data=data, datasets=datasets)


def _read_datasets(values: dict[str, Any], images: int, data: Mapping[str, Any], *, datasets: bool) -> Recipe:
    """Read a file for `--dataset_config`, which says nothing of the training."""
    draft = Draft(values, images)
    draft.apply(DIRECT)
    if "resolution" in values or dataset_config.find_repeated(data):
        _set_resolution(draft, data)
    dataset_config.apply(draft, data if datasets else {})
    if "num_repeats" not in draft.mapped:  # which count in epochs
        draft.leave("decided here", "num_repeats")
    _leave_others(draft)
    return draft.finish("sd-scripts", USUAL)


def read_metadata(metadata: Mapping[str, str], images: int) -> Recipe:
    """Read the recipe in the metadata of an adapter file that sd-scripts wrote: its `ss_` entries."""
    words = {"None": None, "True": True, "False": False}
    names = {
        "batch_size_per_device": "train_batch_size",
        "epoch": "epoch_done",
        "optimizer": "optimizer_type",
        "debiased_estimation": "debiased_estimation_loss",
    }
    values: dict[str, Any] = {}
    for key, value in metadata.items():
        if key.startswith("ss_"):
            name = key.removeprefix("ss_")
            values[names.get(name, name)] = words.get(value, value)
    datasets = _json(values.pop("datasets", None))
    data: dict[str, Any] = {}
    if isinstance(datasets, list) and datasets and isinstance(datasets[0], dict):
        data = {"datasets": datasets}
        values = {**_of_dataset(datasets[0]), **values}
    arguments = _json(values.pop("network_args", None))
    if isinstance(arguments, dict):
        values |= {f"network_args.{name}": value for name, value in arguments.items()}
    return _read(values, images, gui=False, data=data, datasets=False)


def _json(value: object) -> Any:  # noqa: ANN401 - any JSON
    try:
        return foreign_text.parse_json(value) if isinstance(value, str) else None
    except foreign_text.ForeignTextError:
        return None


def _of_dataset(dataset: dict[str, Any]) -> dict[str, Any]:
    subsets = dataset.get("subsets")
    first = subsets[0] if isinstance(subsets, list) and subsets and isinstance(subsets[0], dict) else {}
    values = {**first, **{key: value for key, value in dataset.items() if key not in ("subsets", "tag_frequency")}}
    values |= {"train_batch_size": values.pop("batch_size_per_device", 1)}
    kept = {*DIRECT, "resolution", "num_repeats"}
    return {key: value for key, value in values.items() if key in kept}


def lifted(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their names alone, as sd-scripts reads them: its sections mean nothing.

    The first dataset and its first subset are lifted too; others keep their place in their names.
    """
    values: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and name != "network_args":
            values |= value
        elif name != "datasets":
            values[name] = value
    values |= _arguments("network_args", values.pop("network_args", None))
    values |= _arguments("optimizer_args", values.pop("optimizer_args", None))
    datasets = data.get("datasets")
    for number_, dataset in enumerate(datasets if isinstance(datasets, list) else []):
        if not isinstance(dataset, Mapping):
            values[f"datasets.{number_}"] = dataset
            continue
        subsets = dataset.get("subsets")
        own = {"train_batch_size" if key == "batch_size" else key: value for key, value in dataset.items()}
        own.pop("subsets", None)
        _lift(values, own, f"datasets.{number_}", first=number_ == 0)
        for place, subset in enumerate(subsets if isinstance(subsets, list) else []):
            if isinstance(subset, Mapping):
                where = f"datasets.{number_}.subsets.{place}"
                _lift(values, subset, where, first=number_ == place == 0)
    return flat(values)


def _lift(values: dict[str, Any], own: Mapping[str, Any], where: str, *, first: bool) -> None:
    for name, value in own.items():
        values[name if first else f"{where}.{name}"] = value


def _arguments(name: str, value: object) -> dict[str, Any]:
    """Return `key=value` arguments by their names; their values stay text."""
    if isinstance(value, str):
        value = re.findall(r"""[\w.]+=(?:"[^"]*"|'[^']*'|\([^)]*\)|\S+)""", value[:5000]) or ([value] if value else [])
    if isinstance(value, Mapping):
        return {f"{name}.{key}": item for key, item in value.items()}
    if not isinstance(value, list):
        return {} if value is None else {name: value}
    result: dict[str, Any] = {}
    for number_, item in enumerate(value):
        key, equals, argument = str(item).partition("=")
        result[f"{name}.{key.strip()}" if equals else f"{name}.{number_}"] = argument.strip("\"' ") if equals else item
    return result


def _read(values: dict[str, Any], images: int, *, gui: bool, data: Mapping[str, Any], datasets: bool) -> Recipe:
    draft = Draft(values, images)
    spec = draft.spec = flow_scripts.find(draft, gui=gui)
    flow = scripted(flow_of(spec))
    draft.settings |= NEUTRAL
    if gui:
        _of_gui(draft, flow)
    flow_scripts.leave_unused(draft, flow, gui=gui)
    draft.apply(DIRECT)
    _set_resolution(draft, data)
    sections.set_base(draft, "pretrained_model_name_or_path")
    dataset_config.apply(draft, data if datasets else {})
    _set_length(draft, gui=gui)
    _set_objective(draft)
    if spec and flow:
        flow_scripts.apply(draft, flow)
        note_family(draft, spec)
    _set_previews(draft)
    network_args.apply(draft, flow)
    optimizer_args.apply(draft, gui=gui)
    _leave_others(draft)
    return draft.finish("kohya_ss" if gui else "sd-scripts", USUAL)


def _leave_others(draft: Draft) -> None:
    for key in [key for key in draft.values if key not in draft.left]:
        prefixed = _OF_SCRIPT.match(key)
        name = (prefixed["name"] or "") if prefixed else key.rpartition(".")[2]
        of_subset = key.startswith("datasets.") and name in DECIDED_HERE
        if key in DECIDED_HERE or of_subset or (prefixed and name in ("", *DECIDED_HERE)):
            draft.leave("decided here", key)
        elif name in OF_THAT_MACHINE:
            draft.leave("of that machine", key)


def _of_gui(draft: Draft, flow: ScriptedFlow | None) -> None:
    """Rename what the GUI calls differently, and leave out what it shows but does not use."""
    values = draft.values
    for theirs, name in (("max_resolution", "resolution"), ("optimizer", "optimizer_type")):
        if theirs in values and name not in values:
            values[name] = values.pop(theirs)
    if flow and (prefix := flow.kohya.prefix):
        for key in [key for key in values if key.startswith(prefix) and not key.endswith("_checkbox")]:
            values[key.removeprefix(prefix)] = values.pop(key)
    unused = ["multires_noise_iterations", "multires_noise_discount"]
    if str(values.get("noise_offset_type", "")) == "Multires":
        unused = ["noise_offset", "adaptive_noise_scale", "noise_offset_random_strength"]
    draft.leave("off", *unused, "noise_offset_type")
    for key in ("seed", "max_timestep"):  # 0 leaves both to sd-scripts
        if is_idle(values.get(key)):
            draft.leave("off", key)


def _set_resolution(draft: Draft, data: Mapping[str, Any]) -> None:
    sides = [draft.get("resolution", side, (512, True))]
    keys = ["resolution"]
    if repeated := dataset_config.find_repeated(data):
        sides = list(dict(repeated.values()).items())
        for number_ in repeated:
            keys.append(f"datasets.{number_}.resolution")
            batch_key = f"datasets.{number_}.train_batch_size"
            if draft.values.get(batch_key) == draft.settings.get("training.batch_size"):
                draft.set("training.batch_size", draft.values[batch_key], batch_key)
    sections.set_resolutions(
        draft, sides, ", ".join(str(draft.values[key]) for key in keys if key in draft.values), *keys
    )


def steps_per_epoch(draft: Draft) -> int:
    """Return the number of steps of an epoch, 0 if the number of images is not known."""
    resolutions = 1 + len(draft.settings.get("training.further_resolutions", []))
    seen = resolutions * (draft.seen or draft.images * (draft.get("num_repeats", positive, None) or 1))
    batch, passes = int(draft.settings["training.batch_size"]), int(draft.settings["training.gradient_accumulation"])
    return math.ceil(math.ceil(seen / batch) / passes)


def _set_length(draft: Draft, *, gui: bool) -> None:
    epochs = draft.get("max_train_epochs", positive, None)
    steps = draft.get("max_train_steps", positive, None)
    keys = ["max_train_epochs", "num_repeats"]
    if gui and not steps and not epochs:
        epochs = draft.get("epoch", positive, None) or 1
        keys.append("epoch")
    elif gui:
        draft.leave("off", "epoch")
    if epochs and draft.images:
        draft.set("training.steps", epochs * steps_per_epoch(draft), *keys)
        if "num_repeats" not in draft.values and not draft.seen:
            draft.note("Repeats stand in the names of the recipe's folders; each image is taken once per epoch.")
    elif epochs:
        sections.note_epochs(draft, epochs)
        draft.leave("no counterpart", *keys)
    else:
        draft.set("training.steps", steps or 1600, "max_train_steps")
        draft.leave("off", "num_repeats")
    if epochs:
        draft.leave("off", "max_train_steps")


def _set_objective(draft: Draft) -> None:
    gamma = draft.get("min_snr_gamma", number, 0.0)
    debiased = draft.get("debiased_estimation_loss", flag, False)
    if gamma > 0:
        draft.set("objective.weighting", "min-snr", "min_snr_gamma")
        draft.set("objective.min_snr_gamma", gamma, "min_snr_gamma")
        if debiased:
            draft.note("The recipe weights the loss twice; Limner keeps min-SNR.")
    elif debiased:
        draft.set("objective.weighting", "debiased", "debiased_estimation_loss")
    if draft.get("masked_loss", flag, False) or draft.get("alpha_mask", flag, False):
        draft.set("objective.masked_loss", True, "masked_loss", "alpha_mask")
        draft.set("objective.unmasked_weight", 0.0, "masked_loss", "alpha_mask")
        draft.note(sections.MASKS)
    kind = draft.get("loss_type", text, "l2")
    schedule = draft.get("huber_schedule", text, "snr")
    if kind in ("huber", "smooth_l1"):
        ours = "huber" if schedule == "constant" else "scheduled-huber"
        draft.set("objective.loss_type", ours, "loss_type", "huber_schedule")
        draft.take("objective.huber_c", "huber_c", number, 0.1)
        if kind == "smooth_l1" or schedule == "snr":
            draft.note("Limner has pseudo-Huber with a constant or an exponential schedule; the nearest is taken.")


def _set_previews(draft: Draft) -> None:
    """Take preview prompts that are in the recipe itself, as in the GUI's; sd-scripts names a file of them."""
    lines = draft.get("sample_prompts", text, "")
    if "\n" not in lines and re.search(r"\.(txt|toml|json)$", lines.strip(), re.IGNORECASE):
        draft.leave("of that machine", "sample_prompts")
        lines = ""
    sections.set_prompts(draft, lines.splitlines(), "sample_prompts")
    epochs = draft.get("sample_every_n_epochs", positive, None)
    if epochs and draft.images and not draft.get("sample_every_n_steps", positive, None):
        draft.set("preview.every", epochs * steps_per_epoch(draft), "sample_every_n_epochs")
