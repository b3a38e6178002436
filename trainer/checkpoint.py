"""What a run can be resumed from: adapter, optimizer, step; whole or not there at all, with a checksum for each file.

`checkpoints/000500/` holds `adapter.safetensors` (fp32, in the form that other programs load, so that every
checkpoint can be tried), `optimizer.safetensors` and `manifest.json`. Nothing is pickled, and no random state is
needed: it follows from the step.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from trainer import __version__, events, files
from trainer.errors import UserError
from trainer.families import Adapter
from trainer.runs import Run

ADAPTER = "adapter.safetensors"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "manifest.json"


def save_checkpoint(
    run: Run, adapter: Adapter, optimizer: Optimizer, step: int, keep: int, metadata: dict[str, str]
) -> None:
    """Write the checkpoint of a step, then remove all but the newest `keep` whole ones."""
    state, plain = _flat(optimizer)
    contents = {ADAPTER: save(adapter.tensors(), metadata), OPTIMIZER: save(state)}
    manifest = {
        "step": step,
        "program": __version__,
        "optimizer": plain,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }

    def fill(folder: Path) -> None:
        for name, data in contents.items():
            files.write(folder / name, data)
        files.write(folder / MANIFEST, json.dumps(manifest, indent=1))

    folder = run.folder / "checkpoints" / f"{step:06d}"
    if not is_whole(folder):
        files.write_folder(folder, fill)
    run.report(events.Checkpoint(step=step, folder=f"checkpoints/{folder.name}"))
    for old in [one for one in found(run) if is_whole(one)][:-keep]:
        shutil.rmtree(old)


def found(run: Run) -> list[Path]:
    """Checkpoint folders of a run by step, the oldest first; half-written ones do not count."""
    root = run.folder / "checkpoints"
    return (
        sorted((one for one in root.iterdir() if one.name.isdigit()), key=lambda one: int(one.name))
        if root.is_dir()
        else []
    )


def is_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint are there with the checksums that its manifest names."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return (
            all(
                hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
                for name, digest in manifest["sha256"].items()
            )
            and {ADAPTER, OPTIMIZER} <= manifest["sha256"].keys()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def resume(run: Run, adapter: Adapter, optimizer: Optimizer) -> int:
    """Load the newest whole checkpoint; returns its step, 0 if there is none.

    A damaged one is passed over, with a warning that names the step.

    Raises:
        UserError: the checkpoint is whole but of another form than the settings ask for.
    """
    root = run.folder / "checkpoints"
    if root.is_dir():
        files.sweep(root)
    for folder in reversed(found(run)):
        if not is_whole(folder):
            run.report(
                events.Warned(message=f"The checkpoint of step {int(folder.name)} is damaged; an older one is used.")
            )
            continue
        manifest = json.loads((folder / MANIFEST).read_bytes())
        adapter.load(load((folder / ADAPTER).read_bytes()))
        _restore(optimizer, load((folder / OPTIMIZER).read_bytes()), manifest["optimizer"])
        return int(manifest["step"])
    return 0


def _flat(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by `<parameter>.<name>`, and what is no tensor by the same keys."""
    tensors, plain = {}, {}
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain[f"{number}.{name}"] = value
    # A file without any tensor cannot be told from an empty one.
    return tensors or {"empty": torch.zeros(1)}, plain


def _restore(optimizer: Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain}.items():
        number, _, name = key.partition(".")
        if number.isdigit():
            state.setdefault(int(number), {})[name] = value
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if state and set(state) != set(range(count)):
        raise UserError(
            f"The saved optimizer state is for {len(state)} tensors, the adapter has {count}.",
            "Give the settings the values they had, or start a new run.",
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
