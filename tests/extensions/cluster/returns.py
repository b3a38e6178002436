"""Adapters and checkpoints as a worker on a node writes them, made from shapes alone."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from trainer import config, families, storage
from trainer.runs import Run, checkpoints, events


def tensors_of(run: Run, seed: int = 1) -> dict[str, Tensor]:
    """Tensors of the adapter that a run trains, with random values."""
    settings, rng = run.config(), torch.Generator().manual_seed(seed)
    layers = families.outlined(
        families.outline(settings.model), settings.adapter, text_encoder=settings.training.text_encoder
    )
    return {
        f"{name}.{ending}": tensor if ending == "alpha" else torch.randn(tensor.shape, generator=rng)
        for name, tensors in layers.items()
        for ending, tensor in tensors.items()
    }


def metadata_of(run: Run) -> dict[str, str]:
    return {"limner.config": config.dump(config.without_paths(run.config()))}


def adapter(run: Run, seed: int = 1) -> bytes:
    return safetensors.torch.save(tensors_of(run, seed), metadata_of(run))


def checkpoint(run: Run, step: int, data: bytes = b"", sums: Mapping[str, str] | None = None) -> None:
    """Write the checkpoint of a step; `sums` are announced in place of the right ones."""
    trained = [tensor for key, tensor in tensors_of(run).items() if not key.endswith("alpha")]
    state = {f"{number}.value": tensor for number, tensor in enumerate(trained)}

    def fill(folder: Path) -> None:
        own = {
            checkpoints.ADAPTER: storage.write(folder / checkpoints.ADAPTER, data or adapter(run)),
            checkpoints.OPTIMIZER: storage.write(folder / checkpoints.OPTIMIZER, safetensors.torch.save(state)),
        }
        manifest = {"step": step, "sha256": {**own, **(sums or {})}}
        manifest["sha256"][checkpoints.MANIFEST] = checkpoints.checksum(manifest)
        storage.write(folder / checkpoints.MANIFEST, json.dumps(manifest))

    storage.write_folder(run.folder / checkpoints.FOLDER / f"{step:06d}", fill)
    run.report(events.Checkpoint(step=step, folder=f"{checkpoints.FOLDER}/{step:06d}"))
