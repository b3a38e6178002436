"""Measure what a program does with adapter files: what it changes in a narrow base model, beside what is meant.

    python -m benchmarks.behavior PROGRAM FAMILY FILE...

is run by `benchmarks.verdicts`, once for each program, as their modules have the same names. It prints one JSON line
for each file. With `LIMNER_BENCH_TRACEBACK` in the environment it shows why a program stopped.
"""

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from benchmarks.loaders import LOADERS
from benchmarks.narrow import Base
from benchmarks.narrow_modules import Changes
from trainer.adapter_files import reader, safetensors_reader
from trainer.adapter_files.modules import bias_change
from trainer.errors import UserError

RIGHT = 0.01  # of the change; some programs multiply factors in fp16


def expected(base: Base, file: Path) -> Changes | None:
    """What the file is meant to change, by Limner's own reader and without embeddings; None if it does not read it."""
    tensors = {key: tensor for key, tensor in load_file(file).items() if not key.startswith("bundle_emb.")}
    try:
        adapter = reader.of_file(
            safetensors_reader.parse(save(tensors, safetensors_reader.read(file).metadata), file.name)
        )
    except UserError:
        return None
    changes = {}
    for name, module in adapter.modules.items():
        weight = base.tensor(name, "weight")
        changes[f"{name}.weight"] = module.delta(weight.reshape(len(weight), -1)).reshape(weight.shape)
        if (bias := bias_change(module)) is not None:
            changes[f"{name}.bias"] = bias
    return changes


def behavior(load: Callable[[Path], Changes], base: Base, file: Path) -> dict[str, Any]:
    """Load a file, and say what happened: right, differs (by how much of what was meant), nothing, refuses."""
    meant = expected(base, file)
    noise = io.StringIO()
    try:
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise), torch.no_grad():
            changes = load(file)
    except Exception as error:  # whatever the program raises is its refusal
        if "LIMNER_BENCH_TRACEBACK" in os.environ:
            traceback.print_exc()
        return {"outcome": "refuses", "detail": f"{type(error).__name__}: {error}"[:300]}
    moved = {key: change for key, change in changes.items() if bool(change.any())}
    if not moved:
        return {"outcome": "nothing"}
    if meant is None:
        return {"outcome": "unknown", "moved": len(moved)}
    lost = sum(float((moved.get(key, torch.zeros(())) - meant.get(key, torch.zeros(()))).square().sum())
               for key in moved.keys() | meant.keys())  # fmt: skip
    size = sum(float(change.square().sum()) for change in meant.values())
    error = (lost / size) ** 0.5
    if sum(float(change.square().sum()) for change in moved.values()) < 1e-6 * size:
        return {"outcome": "nothing"}
    left_out = [key for key, change in meant.items() if bool(change.any()) and key not in moved]
    return {
        "outcome": "right" if error < RIGHT and not left_out else "differs",
        "error": error,
        "moved": len(moved),
        "meant": len(meant),
    }


def main() -> None:
    program, family, *files = sys.argv[1:]
    base = Base.make(family)
    load = LOADERS[program](base)
    for file in map(Path, files):
        print(json.dumps({"file": file.name, **behavior(load, base, file)}), flush=True)


if __name__ == "__main__":
    main()
