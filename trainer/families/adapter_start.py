"""Start an adapter from the file of another one, so that training goes on from what that one does."""

from collections.abc import Mapping
from pathlib import Path

import torch

from trainer import paths, storage
from trainer.adapter_files import low_rank, reader
from trainer.adapter_files.modules import Module
from trainer.config.adapter import AdapterConfig, Lora
from trainer.errors import UserError
from trainer.families.adapter_layers import Layer, LoraPair, check_size
from trainer.i18n import _


def start(layers: Mapping[str, Layer], settings: AdapterConfig) -> None:
    """Give freshly initialized layers the change of the adapter that the settings start from, if they name one.

    A change of a lower rank is taken exactly, and the other ranks stay as they are initialized; of one of a higher rank
    the best approximation is taken (Eckart & Young 1936). Layers that the file does not change stay as they are.

    Raises:
        UserError: the file is not there or no adapter, is for another base model, changes layers that are not trained,
            or is of a kind that is no low-rank change.
    """
    path = _file(settings)
    if path is None:
        return
    modules = reader.read(path).modules
    if left_out := sorted(modules.keys() - layers.keys()):
        raise UserError(
            "The adapter {file} also changes {count} layers that this run does not train, such as {layer}.",
            "Train the same layers (Layers, Blocks, Text encoder), or start from another adapter; it may also be for "
            "another base model.",
            file=path.name,
            count=len(left_out),
            layer=left_out[0],
        )
    for name, module in modules.items():
        layer = layers[name]
        assert isinstance(layer, LoraPair)  # the settings of other kinds have no start
        _take(layer, module, name)


def _take(layer: LoraPair, module: Module, name: str) -> None:
    weight = layer.module.get_base_layer().weight
    check_size(name, module, (len(weight), weight[0].numel()))
    rank = layer.down.shape[0]
    pair = low_rank.factors(module, tuple(weight.shape[1:]))
    if pair.rank > rank:
        pair = low_rank.cut(pair, rank).pair
    factors = pair.module(layer.scale * pair.rank, torch.float32)
    with torch.no_grad():
        layer.down[: pair.rank] = factors.down.reshape(pair.rank, *layer.down.shape[1:]).to(layer.down)
        layer.up[:, : pair.rank] = factors.up.reshape(len(layer.up), pair.rank, *layer.up.shape[2:]).to(layer.up)


def _file(settings: AdapterConfig) -> Path | None:
    if not isinstance(settings, Lora) or not settings.start:
        return None
    path = Path(settings.start).expanduser()
    if not path.is_file() or not paths.is_allowed(path):
        raise UserError("The adapter {file} to start from is not there.", "Choose another one.", file=path.name)
    return path


def checksum(settings: AdapterConfig) -> str:
    """Return the SHA-256 of the adapter that the settings start from; "" if they name none.

    Raises:
        UserError: it is not there.
    """
    path = _file(settings)
    return storage.sha256(path) if path else ""


def note(settings: AdapterConfig) -> str:
    """Return a sentence about a start of a higher rank than the adapter's; "" if its change is taken exactly."""
    path, rank = _file(settings), settings.rank
    highest = max(module.rank for module in reader.read(path).modules.values()) if path else 0
    if path is None or highest <= rank:
        return ""
    return _(
        "The adapter {file} has rank {highest}, this run {rank}: it starts from the best approximation.",
        file=path.name,
        highest=highest,
        rank=rank,
    )
