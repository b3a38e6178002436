"""Flow matching in config files for kohya's scripts: our noise levels and layers, as the script of a family says them.

The names and meanings are those that `kohya_flow` reads.
"""

import math
from typing import Any

from limner_extensions.recipes import kohya_flow
from limner_extensions.recipes.families import FlowScript, ScriptedFlow
from trainer.config.adapter import AdapterConfig
from trainer.config.objective import ObjectiveConfig
from trainer.i18n import _

LEVELS = ("objective.timestep_sampling", "objective.logit_mean", "objective.logit_std", "objective.mode_scale")


def is_used(flow: ScriptedFlow | None, key: str) -> bool:
    """Return True if the script of a family uses a setting; for None, that of the UNets, which uses all."""
    return flow is None or key not in (*kohya_flow.UNUSED, *flow.kohya.unused)


def levels(objective: ObjectiveConfig, flow: ScriptedFlow, side: int) -> dict[str, Any]:
    """Return their settings for our noise levels, in images of a side in pixels."""
    script, kind = flow.kohya, objective.timestep_sampling
    if kind == "logit-normal" and script.sampling:
        values: dict[str, Any] = {"timestep_sampling": script.sampling, "sigmoid_scale": objective.logit_std}
        if objective.logit_mean:  # which no way of drawing has beside a shift, but another shift is the same
            shift = flow.shift(side) * math.exp(objective.logit_mean)
            values |= {"timestep_sampling": "shift", script.shift: float(f"{shift:.6g}")}
        return values
    values = {"timestep_sampling": "sigma"} if script.sampling else {}
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
        notes.append(kohya_flow.image_loss_note())
    elif flow.kohya.image_loss and not objective.min_timestep:
        notes.append(_("objective.min_timestep is 1 there: with sigma_sqrt, sd-scripts divides by the noise level."))
    ends = {"objective.min_timestep": objective.min_timestep, "objective.max_timestep": objective.max_timestep}
    if is_used(flow, "max_timestep") and kohya_flow.is_cut(ends):
        notes.append(kohya_flow.range_note())
    return notes


def layers(adapter: AdapterConfig, script: FlowScript) -> tuple[dict[str, Any], set[str]]:
    """Return the arguments of their network for our layers, and the settings of ours that they say."""
    arguments: dict[str, Any] = dict.fromkeys(script.skipped.get(adapter.targets, ()), 0)
    if script.splits_qkv:
        arguments["split_qkv"] = True
    paths = {"adapter.targets"}
    for name, block in script.blocks.items():
        if block and tuple(adapter.blocks) == (block,):
            arguments["train_blocks"] = name
            paths.add("adapter.blocks")
    return arguments, paths
