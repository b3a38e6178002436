"""Checkpoints of adapter, optimizer state and step: whole or absent, with a checksum for each file.

`checkpoints/000500/` holds `adapter.safetensors` (fp32, what would be exported, in the form that other programs load,
so that every checkpoint can be tried), `optimizer.safetensors` (the trained tensors as the optimizer steps them, and
what it remembers of each) and `manifest.json`. Nothing is pickled, and no random state is needed: it follows from the
step.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer import __version__, storage
from trainer.errors import UserError
from trainer.families import Adapter
from trainer.i18n import say
from trainer.runs import Run, events

ADAPTER = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "manifest.json"
VALUE = "value"
AVERAGE = "average_of_values"
OWN = ("training.steps", "training.parts", "training.gradient_checkpointing")  # what a run may change by itself


@dataclass(frozen=True)
class Progress:
    """All that the steps so far have left behind, but for the adapter's place in the model.

    `average` is the running mean of the trained tensors, empty if there is none; `notes` are plain values that
    belong to nothing above, by name.
    """

    optimizer: Optimizer
    average: list[Tensor] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def parameters(self) -> list[nn.Parameter]:
        """The trained tensors in the order of the optimizer."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def follow(self, step: int, keep: float) -> None:
        """Move the average towards the trained tensors after completed step `step`; it keeps this share of itself.

        Less at first, (1 + step) / (10 + step), so that the beginning is soon forgotten.
        """
        share = 1 - min(keep, (1 + step) / (10 + step))
        for mean, parameter in zip(self.average, self.parameters(), strict=False):  # none if there is no average
            mean.lerp_(parameter, share)

    @contextmanager
    def settled(self, adapter: Adapter) -> Iterator[None]:
        """Inside the `with`, the adapter is as it would be exported: averaged if it is to be, and without dropout.

        Afterwards each tensor is again what it was, bit for bit.
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
def _copy(values: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    for value, place in zip(values, places, strict=False):  # one of them is empty if there is no average
        place.copy_(value)


def save_checkpoint(
    run: Run, adapter: Adapter, progress: Progress, step: int, keep: int, metadata: dict[str, str]
) -> None:
    """Write the checkpoint of a step, then remove all but the newest `keep` whole ones."""
    state, plain = _flat(progress)
    _check_finite(state, step)
    contents = {OPTIMIZER: save(state)}  # before `settled` changes what the tensors of the state share with the adapter
    with progress.settled(adapter):
        tensors = adapter.tensors()
        _check_finite(tensors, step)
        contents[ADAPTER] = save(tensors, metadata)
    manifest: dict[str, Any] = {
        "step": step,
        "program": __version__,
        "optimizer": plain,
        "groups": [_learned(group, progress.optimizer.defaults) for group in progress.optimizer.param_groups],
        "notes": progress.notes,
        "settings": _settings(run),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    manifest["sha256"][MANIFEST] = _sum(manifest)

    def fill(folder: Path) -> None:
        for name, data in contents.items():
            storage.write(folder / name, data)
        storage.write(folder / MANIFEST, json.dumps(manifest, indent=1))

    folder = run.folder / "checkpoints" / f"{step:06d}"
    if not is_whole(folder):
        storage.write_folder(folder, fill)
    run.report(events.Checkpoint(step=step, folder=f"checkpoints/{folder.name}"))
    for old in [one for one in found(run) if is_whole(one)][:-keep]:
        storage.remove_folder(old)


def _check_finite(tensors: dict[str, Tensor], step: int) -> None:
    """Refuse to keep what no run could go on from.

    Raises:
        UserError: some value is infinite or no number.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise UserError(
            "The adapter has values that are no numbers after step {step}.",
            "Lower the learning rate, or train in bf16 or fp32; the last checkpoint is kept.",
            step=step,
        )


def check_room(run: Run, progress: Progress, keep: int) -> None:
    """Make sure that the checkpoints of a run fit on the disk, before it takes its time.

    Raises:
        UserError: they do not; it says how much they take.
    """
    values = sum(parameter.numel() for parameter in progress.parameters())
    each = 4 * values * (4 + bool(progress.average))  # the adapter; each value, and at most two memories of it
    need = each * max(2, keep + 1 - len(found(run)))  # the newest is whole before the oldest goes
    free = storage.free_space(run.folder)
    if free < need:
        raise UserError(
            "The disk has {free} MB left; the checkpoints of this run take about {need} MB.",
            "Make room, or keep fewer checkpoints.",
            free=free // 2**20,
            need=1 + need // 2**20,
        )


def forget(run: Run) -> None:
    """Remove all checkpoints of a run, which begins again."""
    for folder in found(run):
        storage.remove_folder(folder)


def found(run: Run) -> list[Path]:
    """Checkpoint folders of a run by step, the oldest first; half-written ones do not count."""
    root = run.folder / "checkpoints"
    return (
        sorted((one for one in root.iterdir() if one.name.isdigit()), key=lambda one: int(one.name))
        if root.is_dir()
        else []
    )


def is_whole(folder: Path) -> bool:
    """Tell whether all files of a checkpoint have the checksums that its manifest names.

    Those that were made before the manifest had a checksum of its own do without it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        named = manifest["sha256"]
        own = named.pop(MANIFEST, "")
        return (
            own in ("", _sum(manifest))
            and {ADAPTER, OPTIMIZER} <= named.keys()
            and all(
                hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in named.items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sum(manifest: dict[str, Any]) -> str:
    """The checksum of what a manifest says; its own is put in afterwards, and taken out before it is compared."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def resume(run: Run, progress: Progress, give: Callable[[bytes], bytes] = bytes) -> int:
    """Load the newest whole checkpoint; returns its step, 0 if there is none.

    A damaged one is passed over, with a warning that names the step; settings that a person changed since it was made
    are named in another one. Of several processes the leader reads it, and `give` hands its bytes to the others, which
    may be on another machine.

    Raises:
        UserError: the checkpoint is whole but of another form than the settings ask for.
    """
    manifest, state = _newest(run) if run.leads else ({}, b"")
    manifest, state = json.loads(give(json.dumps(manifest).encode())), give(state)
    if not manifest:
        return 0
    _restore(progress, load(state), manifest)
    before, now = manifest.get("settings", {}), _settings(run) if run.leads else {}
    if changed := ", ".join(sorted(name for name in before.keys() & now.keys() if before[name] != now[name])):
        told = say("Changed since the checkpoint of step {step}: {names}.", step=manifest["step"], names=changed)
        run.report(events.Warned(message=told))
    return int(manifest["step"])


def _newest(run: Run) -> tuple[dict[str, Any], bytes]:
    """Load the newest whole checkpoint: its manifest and the training state; nothing if there is none."""
    for folder in reversed(found(run)):
        if not is_whole(folder):
            told = say("The checkpoint of step {step} is damaged; an older one is used.", step=int(folder.name))
            run.report(events.Warned(message=told))
            continue
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if not {"step", "optimizer", "groups", "notes"} <= manifest.keys():
            raise UserError(
                "The checkpoint of step {step} was made by Limner {program}, this is {version}.",
                "Resume with that version, or start a new run.",
                step=int(folder.name),
                program=manifest.get("program", "?"),
                version=__version__,
            )
        return manifest, (folder / OPTIMIZER).read_bytes()
    return {}, b""


def _settings(run: Run) -> dict[str, Any]:
    """The settings of a run by name, without those that are its own."""
    named = dict(_named(run.config().model_dump(mode="json", exclude={"record"}), ""))
    return {name: value for name, value in named.items() if name not in OWN}


def _named(data: dict[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _named(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _flat(progress: Progress) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Each trained tensor's value, average and optimizer state by `<number>.<name>`, and what is no tensor likewise."""
    tensors, plain = {}, {}
    for name, values in ((VALUE, progress.parameters()), (AVERAGE, progress.average)):
        for number, value in enumerate(values):
            tensors[f"{number}.{name}"] = value.detach().cpu().contiguous()
    for number, parameter in enumerate(progress.parameters()):
        # Not by `state_dict`, which for 8 bits puts tables inside tables.
        for name, value in progress.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):  # a copy, as the 8-bit kind has tables that all share
                tensors[f"{number}.{name}"] = value.detach().cpu().contiguous().clone()
            else:
                plain[f"{number}.{name}"] = value
    return tensors, plain


def _learned(group: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return what an optimizer adapted for a parameter group: plain values that differ from the settings."""
    return {
        name: value
        for name, value in group.items()
        if isinstance(value, int | float) and name not in ("lr", "factor") and value != defaults.get(name)
    }


def _restore(progress: Progress, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    parameters, optimizer = progress.parameters(), progress.optimizer
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **manifest["optimizer"]}.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    values = [one.pop(VALUE, None) for _, one in sorted(state.items())]
    averages = [one.pop(AVERAGE, None) for _, one in sorted(state.items())]
    if [_shape(one) for one in values] != [one.shape for one in parameters] or len(manifest["groups"]) != len(
        optimizer.param_groups
    ):
        raise UserError(
            "The saved adapter has another form than the settings ask for.",
            "Give rank and trained parts the values they had, or start a new run.",
        )
    _copy(values, parameters)
    _copy([value if mean is None else mean for mean, value in zip(averages, values, strict=True)], progress.average)
    groups = optimizer.state_dict()["param_groups"]
    kept = [group | learned for group, learned in zip(groups, manifest["groups"], strict=True)]
    optimizer.load_state_dict({"state": {n: one for n, one in state.items() if one}, "param_groups": kept})
    progress.notes.update(manifest["notes"])


def _shape(value: Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape
