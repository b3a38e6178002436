"""Save the adapter, the optimizer state and the step as a checkpoint, and resume from one.

`runs.checkpoints` describes its files. No random state is needed: it follows from the step.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer import __version__, foreign_text, storage
from trainer.config import CheckpointConfig, Record, TrainConfig
from trainer.errors import UserError
from trainer.families import Adapter
from trainer.i18n import _
from trainer.runs import Run, events
from trainer.runs.checkpoints import (
    ADAPTER,
    FOLDER,
    MANIFEST,
    OPTIMIZER,
    checksum,
    folders,
    is_intact,
    kept_adapter,
    kept_adapters,
    read_manifest,
)
from trainer.training import upgrades

VALUE = "value"
AVERAGE = "average_of_values"
HELD_OUT = "held_out"
# Settings that a run may change itself.
OWN = (
    "training.steps",
    "training.micro_batches",
    "training.gradient_checkpointing",
    "training.offload",
    "held_out.patience",
)


def lowest_step(losses: Mapping[int, float]) -> int:
    """Return the step at which the loss of held-out images was lowest, the first of several; 0 without any number."""
    numbers = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    return min(numbers, key=lambda step: (numbers[step], step), default=0)


@dataclass(frozen=True)
class TrainState:
    """Optimizer, EMA weights and extra values: everything a checkpoint restores besides the adapter.

    `average` is the exponential moving average of the trained tensors, empty if there is none; `extra` holds other
    plain values by name.
    """

    optimizer: Optimizer
    average: list[Tensor] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def held_out(self) -> dict[int, float]:
        """The loss of the held-out images by step, as far as it decides when the run ends."""
        return dict(self.extra.get(HELD_OUT, []))

    @property
    def lowest_held_out(self) -> int:
        """The step at which that loss was lowest."""
        return lowest_step(self.held_out)

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained tensors in the order of the optimizer."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def update_ema(self, step: int, decay: float) -> None:
        """Move the average towards the trained tensors after completed step `step`.

        The decay is less at first, so that the first steps are soon forgotten; it is that of diffusers' EMAModel.
        """
        share = 1.0 if step <= 1 else 1 - min(decay, step / (9 + step))
        for mean, parameter in zip(self.average, self.parameters(), strict=False):  # none without an average
            mean.lerp_(parameter, share)

    @contextmanager
    def exported_weights(self, adapter: Adapter) -> Iterator[None]:
        """Give the adapter the weights it would be exported with, averaged and without dropout, inside the `with`.

        Afterwards each tensor is restored, bit for bit.
        """
        live = [parameter.detach().clone() for parameter in self.parameters()]
        schedule_free: Any = self.optimizer if hasattr(self.optimizer, "eval") else None
        adapter.train(False)
        if schedule_free:
            schedule_free.eval()
        _copy(self.average, self.parameters())
        try:
            yield
        finally:
            if schedule_free:
                schedule_free.train()
            _copy(live, self.parameters())
            adapter.train(True)


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=False):  # one of them is empty without an average
        target.copy_(source)


def save_checkpoint(
    run: Run, adapter: Adapter, state: TrainState, step: int, settings: CheckpointConfig, metadata: dict[str, str]
) -> None:
    """Write the checkpoint of a step, then remove all but the newest intact ones, whose adapters may be kept.

    Where the held-out loss decides when the run ends, the checkpoint of the lowest one stays too; one that was saved
    for this alone goes once there is a lower one.
    """
    optimizer_tensors, optimizer_values = _flatten(state)
    _check_finite(optimizer_tensors, step)
    contents = {OPTIMIZER: save(optimizer_tensors)}  # before `exported_weights` changes the values they share
    with state.exported_weights(adapter):
        tensors = adapter.tensors()
        _check_finite(tensors, step)
        contents[ADAPTER] = save(tensors, metadata)
    manifest: dict[str, Any] = {
        "step": step,
        "program": __version__,
        "optimizer": optimizer_values,
        "groups": [_adapted(group, state.optimizer.defaults) for group in state.optimizer.param_groups],
        "notes": state.extra,
        "settings": _settings(run),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    manifest["sha256"][MANIFEST] = checksum(manifest)

    def fill(folder: Path) -> None:
        for name, data in contents.items():
            storage.write(folder / name, data)
        storage.write(folder / MANIFEST, json.dumps(manifest, indent=1))

    folder = run.folder / FOLDER / f"{step:06d}"
    if not is_intact(folder):
        storage.write_folder(folder, fill)
    run.report(events.Checkpoint(step=step, folder=f"{FOLDER}/{folder.name}"))
    intact = [folder for folder in folders(run) if is_intact(folder)]
    superseded = {folder for folder in intact[:-1] if _is_superseded(int(folder.name), state, settings)}
    scheduled = [folder for folder in intact if folder not in superseded and int(folder.name) != state.lowest_held_out]
    for old in (*superseded, *scheduled[: -settings.keep]):
        if settings.adapters:
            _keep_adapter(run, old)
        with suppress(PermissionError):  # on Windows, while it is downloaded: the next checkpoint removes it
            storage.remove_folder(old)


def _is_superseded(step: int, state: TrainState, settings: CheckpointConfig) -> bool:
    """Return True for a checkpoint that was saved between those of the schedule, as its loss was the lowest so far."""
    before = {measured: loss for measured, loss in state.held_out.items() if measured <= step}
    was_lowest = step in before and lowest_step(before) == step
    return was_lowest and step != state.lowest_held_out and step % settings.every != 0


def restore(run: Run, state: TrainState, step: int) -> bool:
    """Restore the checkpoint of a step; return False if it is missing or damaged."""
    folder = run.folder / FOLDER / f"{step:06d}"
    if not is_intact(folder):
        return False
    _restore(state, load((folder / OPTIMIZER).read_bytes()), foreign_text.read_json(folder / MANIFEST))
    return True


def _keep_adapter(run: Run, folder: Path) -> None:
    """Copy the adapter of a checkpoint that is about to be removed, in half precision if its values allow that."""
    data = (folder / ADAPTER).read_bytes()
    halves = {name: tensor.to(torch.float16) for name, tensor in load(data).items()}
    if all(bool(half.isfinite().all()) for half in halves.values()):
        with safe_open(folder / ADAPTER, "pt") as file:
            data = save(halves, file.metadata())
    target = kept_adapter(run, int(folder.name))
    target.parent.mkdir(exist_ok=True)
    storage.write(target, data)


def _check_finite(tensors: dict[str, Tensor], step: int) -> None:
    """Refuse to save values that no run could continue from.

    Raises:
        UserError: some value is infinite or NaN.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise UserError(
            "The adapter has values that are not finite after step {step}.",
            "Lower the learning rate, or train in bf16 or fp32; the last checkpoint is kept.",
            step=step,
        )


def check_space(run: Run, state: TrainState, config: TrainConfig) -> None:
    """Make sure that the checkpoints of a run fit on the disk, before it spends any time.

    Raises:
        UserError: they do not; it says how much space they need.
    """
    values = sum(parameter.numel() for parameter in state.parameters())
    each = 4 * values * (4 + bool(state.average))  # the adapter; each value, and at most two moments of it
    keep = config.checkpoint.keep + bool(config.held_out.patience)
    planned = math.ceil(config.training.steps / config.checkpoint.every)  # how many minutes will add is not known
    # The newest is complete before the oldest is removed.
    need = each * max(2, min(keep + 1, planned) - len(folders(run)))
    if config.checkpoint.adapters:
        need += 2 * values * max(0, planned - keep)
    free = storage.free_space(run.folder)
    if free < need:
        raise UserError(
            "The disk has {free} MB left; the checkpoints of this run need about {need} MB.",
            "Free some space, or keep fewer checkpoints.",
            free=free // 2**20,
            need=1 + need // 2**20,
        )


def remove_all(run: Run) -> None:
    """Remove all checkpoints of a run, which starts again."""
    for folder in folders(run):
        storage.remove_folder(folder)
    for file in kept_adapters(run):
        storage.remove(file)


def check_unchanged(before: Record, now: Record) -> None:
    """Refuse to continue with other images or another base model: the result would belong to neither.

    Raises:
        UserError: something differs; it says what.
    """
    remedy = _("Restore it, or start a new run.")
    if before.dataset_sha256 != now.dataset_sha256:
        raise UserError(
            "The images or captions of the dataset changed since this run started.",
            "Restore them, or start a new run. Under Start from (adapter.start), name the newest "
            "adapter.safetensors in the checkpoints of this run, and it goes on from there.",
        )
    if before.base_sha256 != now.base_sha256:
        raise UserError("The base model changed since this run started.", remedy)
    if before.vae_sha256 != now.vae_sha256:
        raise UserError("The VAE changed since this run started.", remedy)
    if before.training_adapter_sha256 != now.training_adapter_sha256:
        raise UserError("The training adapter changed since this run started.", remedy)
    if before.start_sha256 != now.start_sha256:
        raise UserError("The adapter that this run started from has changed.", remedy)


def resume(run: Run, state: TrainState, broadcast: Callable[[bytes], bytes] = bytes) -> int:
    """Load the newest intact checkpoint; return its step, 0 if there is none.

    A damaged one is skipped, with a warning that names the step. Further warnings name the settings that were changed
    since it was made, and what another version of Limner computed differently. Of several processes the main one reads
    it, and `broadcast` sends its bytes to the others, which may be on another machine.

    Raises:
        UserError: the checkpoint is intact, but does not match the settings or this version.
    """
    manifest, tensors = _newest(run) if run.is_main else ({}, b"")
    manifest = foreign_text.parse_json(broadcast(json.dumps(manifest).encode()), most=foreign_text.MAX_OWN)
    tensors = broadcast(tensors)
    if not manifest:
        return 0
    program, config = str(manifest.get("program", "")), run.config()
    upgrades.check(program, config)
    _restore(state, load(tensors), manifest)
    if run.is_main:
        _warn_of_changes(run, manifest)
        if note := upgrades.note(program, config, manifest["step"]):
            run.warn(note)
    return int(manifest["step"])


def _warn_of_changes(run: Run, manifest: dict[str, Any]) -> None:
    before, now = manifest.get("settings", {}), _settings(run)
    if changed := ", ".join(sorted(name for name in before.keys() & now.keys() if before[name] != now[name])):
        run.warn("Changed since the checkpoint of step {step}: {names}.", step=manifest["step"], names=changed)


def _newest(run: Run) -> tuple[dict[str, Any], bytes]:
    """Load the newest intact checkpoint: its manifest and optimizer file; nothing if there is none."""
    for folder in reversed(folders(run)):
        if not is_intact(folder):
            run.warn("The checkpoint of step {step} is damaged; an older one is used.", step=int(folder.name))
            continue
        manifest = read_manifest(folder)
        if not {"step", "optimizer", "groups", "notes"} <= manifest.keys():
            raise UserError(
                "The checkpoint of step {step} was made by Limner {program}; this is {version}.",
                "Resume with that version, or start a new run.",
                step=int(folder.name),
                program=manifest.get("program", "?"),
                version=__version__,
            )
        return manifest, (folder / OPTIMIZER).read_bytes()
    return {}, b""


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings of a run by path, without those that it may change itself."""
    settings = dict(_by_path(run.config().model_dump(mode="json", exclude={"record"}), ""))
    return {path: value for path, value in settings.items() if path not in OWN}


def _by_path(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _by_path(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _flatten(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return values, averages and optimizer state by `<parameter number>.<name>`: tensors and plain values."""
    tensors, plain = {}, {}
    for name, values in ((VALUE, state.parameters()), (AVERAGE, state.average)):
        for number, value in enumerate(values):
            tensors[f"{number}.{name}"] = value.detach().cpu().contiguous()
    for number, parameter in enumerate(state.parameters()):
        # Not by `state_dict`, which nests tables for 8 bits.
        for name, value in state.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):  # a copy, as 8-bit optimizers have tables that all parameters share
                tensors[f"{number}.{name}"] = value.detach().cpu().contiguous().clone()
            else:
                plain[f"{number}.{name}"] = value
    return tensors, plain


def _adapted(group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a parameter group that the optimizer has adapted: numbers that differ from the settings."""
    return {
        name: value
        for name, value in group.items()
        if isinstance(value, int | float) and name not in ("lr", "factor") and value != defaults.get(name)
    }


def _keep_dtypes(state: dict[str, Any], saved: dict[str, Any]) -> None:
    """Give restored state the dtypes that it was saved with: torch casts it to that of its parameter."""
    for name, value in saved.items():
        if isinstance(value, Tensor) and value.dtype != state[name].dtype:
            state[name] = value.to(state[name].device)


def _restore(state: TrainState, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    parameters, optimizer = state.parameters(), state.optimizer
    by_number: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **manifest["optimizer"]}.items():
        number, _, name = key.partition(".")
        by_number.setdefault(int(number), {})[name] = value
    values = [saved.pop(VALUE, None) for _, saved in sorted(by_number.items())]
    averages = [saved.pop(AVERAGE, None) for _, saved in sorted(by_number.items())]
    saved_shapes = [getattr(value, "shape", None) for value in values]
    same_groups = len(manifest["groups"]) == len(optimizer.param_groups)
    if saved_shapes != [parameter.shape for parameter in parameters] or not same_groups:
        raise UserError(
            "The checkpoint does not match these settings.",
            "Restore the original rank and trained layers, or start a new run.",
        )
    _copy(values, parameters)
    _copy([value if mean is None else mean for mean, value in zip(averages, values, strict=True)], state.average)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {
            "state": {number: saved for number, saved in by_number.items() if saved},
            "param_groups": [group | adapted for group, adapted in zip(groups, manifest["groups"], strict=True)],
        }
    )
    for number, parameter in enumerate(parameters):
        _keep_dtypes(optimizer.state.get(parameter, {}), by_number.get(number, {}))
    state.extra.update(manifest["notes"])
