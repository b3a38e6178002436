"""Flow matching in recipes of kohya's scripts, and back: the family of a recipe, and what its script has of its own.

The meaning was read from kohya-ss/sd-scripts at commit 48d368f, in the files that the families name, and from
bmaltais/kohya_ss at commit 45088f0 (kohya_gui/lora_gui.py).
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from limner_extensions.recipes.draft import Draft
from limner_extensions.recipes.families import (
    BY_SIZE,
    FLOWS,
    NAMES,
    OTHER_MODELS,
    OTHER_WORDS,
    FlowScript,
    ScriptedFlow,
    shift_by_size,
)
from limner_extensions.recipes.flow import MORE_LAYERS, Levels, above_zero, refusal, set_levels
from limner_extensions.recipes.values import flag, is_idle, number, text, words
from trainer.base_models.registry import FAMILIES
from trainer.base_models.spec import FamilySpec
from trainer.config.adapter import AdapterConfig
from trainer.config.objective import ObjectiveConfig
from trainer.errors import UserError
from trainer.i18n import _

SCRIPTS = [script for _spec, script in FLOWS]
OUR_LEVELS = ("objective.timestep_sampling", "objective.logit_mean", "objective.logit_std", "objective.mode_scale")
OTHER_FILES = ("gemma2", "byt5")  # text encoders of other models, by their settings
LEVELS = words("""
    timestep_sampling sigmoid_scale discrete_flow_shift training_shift weighting_scheme logit_mean logit_std
    mode_scale
""")
# What none of its scripts uses.
UNUSED = words("""
    max_token_length clip_skip v_parameterization v2 min_snr_gamma debiased_estimation_loss
    scale_v_pred_loss_like_noise_pred v_pred_like_loss zero_terminal_snr multires_noise_iterations
    multires_noise_discount noise_offset_type adaptive_noise_scale noise_offset_random_strength conv_dim conv_alpha
    network_args.conv_dim network_args.conv_alpha
""")
# What the scripts do otherwise.
OTHER_RANGE = _(
    "Where some timesteps are left out, sd-scripts shifts noise levels before they are scaled to the others; Limner "
    "does so afterwards."
)
IMAGE_LOSS = _(
    "sd-scripts weights the loss by the square of the noise level, unless weighting_scheme is sigma_sqrt; Limner does "
    "not."
)
JOINED_LAYERS = _(
    "sd-scripts adapts q, k and v of attention as one layer, unless it is told to split_qkv; Limner adapts each on its "
    "own."
)
NOT_FOUND = _(
    "LyCORIS does not find the blocks of this model, so that there it adapts hardly any layer; Limner adapts all."
)


def find(draft: Draft, *, gui: bool) -> FamilySpec | None:
    """Return the family with flow matching that a recipe is for, None if it is for a UNet.

    Raises:
        UserError: it is for a model that Limner does not train, or does not read such settings for.
    """
    words = [str(draft.values.get(key, "")) for key in ("network_module", "LoRA_type", "base_model_version")]
    words += [key for key, value in draft.values.items() if key.endswith("_checkbox") and str(value).lower() == "true"]
    names = " ".join(words).lower()
    spec = next((spec for spec, script in FLOWS if re.search(script.word, names)), None)
    others = []
    if not spec and not gui:  # whose files have all settings of all models
        spec = next((spec for spec, script in FLOWS if not is_idle(draft.values.get(script.mark))), None)
        others = [key for key in OTHER_FILES if not is_idle(draft.values.get(key))]
    if spec:
        names += str(draft.values.get("model_type", ""))
    if others or OTHER_MODELS.search(names):
        raise _unread(names)
    return spec


def _unread(names: str) -> UserError:
    """Return the error for a recipe of a family that is only read from other programs, or of no family."""
    family = next((family for family, row in NAMES.items() if not row.script and row.names[0] in names), None)
    if not family:
        return refusal()
    return UserError(
        "Settings of sd-scripts for {family} are not read.",
        "Give a recipe of OneTrainer or ai-toolkit for it, or begin with a preset.",
        family=FAMILIES[family].title,
    )


def leave_unused(draft: Draft, flow: ScriptedFlow | None, *, gui: bool) -> None:
    """Leave out what the script of a family does not use."""
    if flow:
        draft.leave("decided here", *UNUSED, *flow.kohya.unused)
    if gui:
        used = flow.kohya.gui if flow else ()
        draft.leave("off", "train_blocks", *(key for script in SCRIPTS for key in script.gui if key not in used))
        others = [script.word for script in SCRIPTS if not flow or script != flow.kohya]
        named = re.compile(rf"({'|'.join([*others, *OTHER_WORDS])})_")
        draft.leave("off", *(key for key in draft.values if named.match(key)))
    else:
        draft.leave("decided here", "split_mode")


def apply(draft: Draft, flow: ScriptedFlow) -> None:
    """Set the noise levels, and name what the script does otherwise."""
    script = flow.kohya
    for key, ours in script.as_here.items():
        usual, reader = script.usual[key], flag if isinstance(ours, bool) else type(ours)
        if draft.get(key, reader, usual) == ours:
            draft.leave("decided here", key)
        elif is_idle(draft.values.get(key)):
            draft.note(
                "Where the recipe says nothing, {setting} is {theirs} there; Limner trains as with {ours}.",
                setting=key,
                theirs=usual,
                ours=ours,
            )
        else:
            draft.leave("no counterpart", key)
    if script.usual_guidance:
        draft.take("model.guidance", "guidance_scale", number, script.usual_guidance)
    scheme = draft.get("weighting_scheme", text, "uniform")
    levels, keys = _levels(draft, script, scheme)
    set_levels(draft, flow, levels, *keys)
    if script.image_loss and scheme == "sigma_sqrt":
        draft.set("objective.weighting", "none", "weighting_scheme")
    elif script.image_loss:
        draft.note(IMAGE_LOSS)
    if {"min_timestep", "max_timestep"} & draft.mapped.keys() and is_cut(draft.settings):
        draft.note(OTHER_RANGE)
    if scheme == "cosmap" or (scheme == "sigma_sqrt" and not script.image_loss):
        draft.leave("no counterpart", "weighting_scheme")
    draft.leave("off", *(key for key in LEVELS if key not in keys))


def is_cut(settings: Mapping[str, Any]) -> bool:
    """Return True if settings of ours, by their paths, leave out the lowest or the highest noise levels."""
    return (settings["objective.min_timestep"], settings["objective.max_timestep"]) != (0, 999)


def _levels(draft: Draft, script: FlowScript, scheme: str) -> tuple[Levels, tuple[str, ...]]:
    """Return the noise levels, and the settings that say them."""
    sampling = draft.get("timestep_sampling", text, script.usual_sampling) if script.usual_sampling else "sigma"
    chooser = ("timestep_sampling",) if script.usual_sampling else ()
    shift = draft.get(script.shift, above_zero, script.usual_shift)
    scale = draft.get("sigmoid_scale", above_zero, 1.0)
    if sampling == "uniform":
        return Levels(), chooser
    shifts = {"sigmoid": 1.0, "shift": shift, BY_SIZE: shift_by_size(int(draft.settings["training.resolution"]))}
    if script.usual_sampling and sampling in shifts:
        own = (script.shift,) if sampling == "shift" else ()
        return Levels("logit-normal", shifts[sampling], std=scale), (*chooser, "sigmoid_scale", *own)
    if sampling != "sigma":
        draft.leave("no counterpart", "timestep_sampling")
    keys = (*chooser, "weighting_scheme", script.shift)
    if scheme == "logit_normal":
        mean = draft.get("logit_mean", number, 0.0)
        mean = -mean if script.usual_sampling else mean  # its table of noise levels begins with the highest
        levels = Levels("logit-normal", shift, mean, draft.get("logit_std", above_zero, 1.0))
        return levels, (*keys, "logit_mean", "logit_std")
    if scheme == "mode":
        return Levels("mode", shift, mode_scale=draft.get("mode_scale", number, 1.29)), (*keys, "mode_scale")
    return Levels("uniform", shift), keys


def _kept_layers(draft: Draft, script: FlowScript) -> tuple[str, list[str]]:
    """Return the layers of ours that a recipe keeps the script to, and the settings that say so; "" if it does not."""
    for ours, arguments in reversed(list(script.skipped.items())):
        skipped = {f"network_args.{name}": str(value) for name, value in arguments.items()}
        if all(str(draft.values.get(key, "")).strip() == value for key, value in skipped.items()):
            return ours, list(skipped)
    return "", []


def set_layers(draft: Draft, script: FlowScript, *, lycoris: bool, targets: str) -> None:
    """Set the layers of the transformer that are adapted, and name those that Limner leaves out."""
    kept, keys = "", list[str]()
    if not lycoris:
        kept, keys = _kept_layers(draft, script)
    draft.set("adapter.targets", kept or targets, *keys)
    if lycoris and not script.lycoris:
        draft.note(NOT_FOUND)
    elif not kept or script.layers_differ:
        draft.note(MORE_LAYERS, program="sd-scripts")
    key = draft.first("network_args.split_qkv", "split_qkv")
    if draft.get(key, flag, False) and not lycoris:
        draft.leave("decided here", key)
    elif script.joins_qkv:
        draft.note(JOINED_LAYERS)
    key = "network_args.train_blocks"
    block = script.blocks.get(draft.get(key, text, "all"))
    if draft.get("split_mode", flag, False):  # of the GUI
        key, block = "split_mode", script.blocks.get("single")
    if block:
        draft.set("adapter.blocks", [block], key)
    elif block is not None:
        draft.leave("off", key)
    indices = ("train_double_block_indices", "train_single_block_indices")
    draft.leave("off", *(key for key in indices if draft.values.get(key) == "all"))
    if not draft.get("train_t5xxl", flag, False) and not draft.get("network_args.train_t5xxl", flag, False):
        draft.leave("off", "t5xxl_lr")


def gui_network(gui_type: str) -> tuple[str, str] | None:
    """Return the network module and the algorithm that a type of the GUI's for one family means, None for others."""
    word, _space, algorithm = gui_type.partition(" ")
    network = next((script.network for script in SCRIPTS if re.match(script.word, word)), None)
    return (network, algorithm or "lora") if network else None


# And back: our noise levels and layers, as the script of a family says them.


def is_used(flow: ScriptedFlow | None, key: str) -> bool:
    """Return True if the script of a family uses a setting; for None, that of the UNets, which uses all."""
    return flow is None or key not in (*UNUSED, *flow.kohya.unused)


def levels(objective: ObjectiveConfig, flow: ScriptedFlow, side: int) -> dict[str, Any]:
    """Return their settings for our noise levels, in images of a side in pixels."""
    script, kind = flow.kohya, objective.timestep_sampling
    if kind == "logit-normal" and script.usual_sampling:
        values: dict[str, Any] = {"timestep_sampling": BY_SIZE, "sigmoid_scale": objective.logit_std}
        if objective.logit_mean or flow.shift is not shift_by_size:  # a mean, which it does not have, is another shift
            shift = flow.shift(side) * math.exp(objective.logit_mean)
            values |= {"timestep_sampling": "shift", script.shift: float(f"{shift:.6g}")}
        return values
    values = {"timestep_sampling": "sigma"} if script.usual_sampling else {}
    values[script.shift] = float(f"{flow.shift(side):.6g}")
    if kind == "logit-normal":
        means = {"logit_mean": objective.logit_mean, "logit_std": objective.logit_std}
        return {**values, "weighting_scheme": "logit_normal", **means}
    if kind == "mode":
        return {**values, "weighting_scheme": "mode", "mode_scale": objective.mode_scale}
    if not script.image_loss:
        return {**values, "weighting_scheme": "uniform"}
    # The loss of the image over the square of the noise level, which must not be 0, is that of the direction.
    return {**values, "weighting_scheme": "sigma_sqrt", "min_timestep": max(1, objective.min_timestep)}


def level_notes(objective: ObjectiveConfig, flow: ScriptedFlow) -> list[str]:
    """Return what differs in the noise levels."""
    notes = []
    if flow.kohya.image_loss and objective.timestep_sampling != "uniform":
        notes.append(IMAGE_LOSS)
    elif flow.kohya.image_loss and not objective.min_timestep:
        notes.append(_("objective.min_timestep is 1 there: with sigma_sqrt, sd-scripts divides by the noise level."))
    ends = {"objective.min_timestep": objective.min_timestep, "objective.max_timestep": objective.max_timestep}
    if is_used(flow, "max_timestep") and is_cut(ends):
        notes.append(OTHER_RANGE)
    return notes


def layers(adapter: AdapterConfig, script: FlowScript) -> tuple[dict[str, Any], set[str]]:
    """Return the arguments of their network for our layers, and the settings of ours that they say."""
    arguments: dict[str, Any] = {**script.skipped.get(adapter.targets, {})}
    if script.splits_qkv:
        arguments["split_qkv"] = True
    paths = {"adapter.targets"}
    for name, block in script.blocks.items():
        if block and tuple(adapter.blocks) == (block,):
            arguments["train_blocks"] = name
            paths.add("adapter.blocks")
    return arguments, paths
