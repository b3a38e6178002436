"""The adapter of a base model: attach it to the trained layers, start it from a file, or patch files into weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from trainer import paths, storage
from trainer.adapter_files import low_rank, reader
from trainer.adapter_files.modules import Module, bias_change
from trainer.adapter_files.reader import AdapterFile
from trainer.base_models import layer_names
from trainer.config.adapter import AdapterConfig, Lora, target_layers
from trainer.errors import UserError
from trainer.families import offload
from trainer.families.adapter_layers import ADAPTER, Layer, LoraPair, check_size, decompose, drop_ranks, known
from trainer.families.family import Family
from trainer.i18n import _

_NAMED = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, BaseTunerLayer)


@dataclass(frozen=True)
class Adapter:
    """Trained weights, by the name that other programs know each module by (`lora_unet_...`, `lora_te_...`)."""

    layers: dict[str, Layer]
    hosts: tuple[nn.Module, ...]
    settings: AdapterConfig

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all trained tensors, in a fixed order."""
        for name in sorted(self.layers):
            yield from self.layers[name].trained().values()

    def groups(self, text_factor: float) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer; `factor` scales the learning rate of each."""
        by_factor: dict[float, list[nn.Parameter]] = {}
        for name in sorted(self.layers):
            for role, parameter in self.layers[name].trained().items():
                factor = 1.0 if name.startswith(layer_names.DENOISER_PREFIXES) else text_factor
                if role == "up" and isinstance(self.settings, Lora):
                    factor *= self.settings.lora_plus_ratio
                by_factor.setdefault(factor, []).append(parameter)
        return [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return the tensors of a file in kohya's format, such as `.lora_down.weight` and `.alpha`."""
        return {
            f"{name}.{ending}": tensor.detach().to("cpu", torch.float32 if ending == "alpha" else dtype).contiguous()
            for name in sorted(self.layers)
            for ending, tensor in self.layers[name].tensors().items()
        }

    def reset(self, seed: int) -> None:
        """Initialize all layers, so that they change nothing yet, or what the adapter to start from changes.

        Raises:
            UserError: training cannot start from that one.
        """
        for name, layer in self.layers.items():
            layer.reset(seed, name)
        _start(self.layers, self.settings)

    def train(self, mode: bool) -> None:
        """Turn the dropout of the adapter's layers on or off."""
        for layer in self.layers.values():
            layer.module.train(mode)
            layer.module.get_base_layer().train()  # else 4-bit weights are packed into a form without a gradient

    def set_strength(self, strength: float) -> None:
        """Scale the adapter's effect; 1 = as trained."""
        for layer in self.layers.values():
            layer.module.set_scale(ADAPTER, strength)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Turn the adapter off inside the `with`.

        `enable_adapters` of peft sets more than this flag, which takes a fiftieth of a step of a small model.
        """
        for layer in self.layers.values():
            layer.module._disable_adapters = True
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.module._disable_adapters = False

    def detach(self) -> None:
        """Put the base model's own modules back; the adapter's tensors stay readable."""
        for layer in self.layers.values():
            setattr(layer.owner, layer.attribute, layer.module.get_base_layer())
        for host in self.hosts:
            del host.peft_config


def attach(family: Family, settings: AdapterConfig, *, text_encoder: bool, seed: int) -> Adapter:
    """Attach an adapter to a base model; it changes nothing yet (Hu et al. 2021, section 4.1), or starts from another.

    Raises:
        UserError: the blocks in the settings match nothing, so that nothing would train; or it cannot start from the
            other adapter.
    """
    paths = _matching(family.denoiser, target_layers(settings.targets, family.denoiser_targets))
    if settings.blocks:
        paths = [path for path in paths if any(block in path for block in settings.blocks)]
    targets = {family.denoiser: paths}
    if text_encoder:
        for prefix, encoder in family.text_encoders.items():
            paths = _matching(encoder, family.text_targets)
            targets[encoder] = [path for path in paths if not _text_name(prefix, path).startswith(family.idle)]
    if not all(targets.values()):
        raise UserError(
            "No layer of the base model has any of these in its name: {layers}.",
            "Name blocks such as {examples}, one per line, or none for all of them.",
            examples="up_blocks, mid_block, down_blocks.1" if family.spec.unet else "transformer_blocks.0.",
            layers=", ".join(settings.blocks or target_layers(settings.targets, family.denoiser_targets)),
        )
    for host, paths in targets.items():
        peft.inject_adapter_in_model(settings.build(paths), host, adapter_name=ADAPTER)
    adapter = Adapter(adapted(family), tuple(targets), settings)
    in_full = family.denoiser.dtype == torch.float32  # diffusers looks at all modules to answer: 30 ms with XL's
    for layer in adapter.layers.values():
        # The weight below it, by which peft goes, may wait in main memory.
        layer.module._move_adapter_to_device_of_base_layer(ADAPTER, family.device)
        if isinstance(layer, LoraPair) and isinstance(settings, Lora) and settings.dora:
            decompose(layer)
        for parameter in layer.trained().values():
            # Small updates would be lost in the base's precision.
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        # In mixed precision autocast casts the adapter to the inputs' type; peft would cast the inputs.
        layer.module.cast_input_dtype_enabled = in_full
        if isinstance(layer, LoraPair) and settings.rank_dropout:
            drop_ranks(layer, settings.rank_dropout)
    adapter.reset(seed)
    adapter.train(True)
    return adapter


def _matching(module: nn.Module, endings: Sequence[str]) -> list[str]:
    dotted = tuple(f".{ending}" for ending in endings)
    return [path for path, _ in module.named_modules() if f".{path}".endswith(dotted)]


def _text_name(prefix: str, path: str) -> str:
    if path == layer_names.TEXT_PROJECTION:
        return f"{prefix}_{path}"
    # transformers 5 leaves the first level out in one of its two classes.
    return f"{prefix}_text_model_" + path.removeprefix("text_model.").replace(".", "_")


def named(family: Family) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Yield all linear, convolution and norm layers, adapted or not, with the names that other programs know them by.

    Each is (name, owner, attribute there, layer); what an adapter put inside of one is left out.
    """
    for prefix, host in {f"lora_{family.spec.denoiser}": family.denoiser, **family.text_encoders}.items():
        adapted_path = "\0"  # no path begins with it
        for path, module in host.named_modules():
            if path.startswith(adapted_path) or not isinstance(module, _NAMED):
                continue
            if isinstance(module, BaseTunerLayer):
                adapted_path = f"{path}."
            owner, _, attribute = path.rpartition(".")
            in_denoiser = host is family.denoiser
            name = f"{prefix}_{family.module_name(path)}" if in_denoiser else _text_name(prefix, path)
            yield name, host.get_submodule(owner), attribute, module


def adapted(family: Family) -> dict[str, Layer]:
    """Return the modules of a model that have an adapter on them, by the names that other programs know them by."""
    layers = {name: known(owner, attribute, module) for name, owner, attribute, module in named(family)}
    return {name: layer for name, layer in layers.items() if layer is not None}


@contextmanager
def patched(family: Family, changes: Sequence[tuple[AdapterFile, float]]) -> Iterator[None]:
    """Add adapter files at their strengths to the weights of the base model, inside the `with`.

    For kinds of adapters that diffusers does not load. Afterwards the weights are restored, bit for bit.

    Raises:
        UserError: a file is for another base model.
    """
    offload.gather(family.denoiser)
    # Where diffusers has put an adapter of its own, peft shows the weight below it.
    layers = {name: module for name, _, _, module in named(family)}
    before: dict[nn.Parameter, Tensor] = {}
    try:
        for file, strength in changes:
            for name, module in file.modules.items():
                for parameter, change in _changes(name, module, layers.get(name), before):
                    with torch.no_grad():
                        parameter.add_(change.reshape(parameter.shape).to(parameter), alpha=strength)
        yield
    finally:
        offload.gather(family.denoiser)
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)


def _changes(
    name: str, module: Module, layer: nn.Module | None, before: dict[nn.Parameter, Tensor]
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield the parameters of a layer that a module changes, with their changes, and note their values in `before`."""
    weight, for_bias = getattr(layer, "weight", None), bias_change(module)
    bias = getattr(layer, "bias", None) if for_bias is not None else weight
    if not isinstance(weight, nn.Parameter) or not isinstance(bias, nn.Parameter):
        remedy = _("Choose the base model that it was trained on.")
        raise UserError("The base model has no {name}.", remedy, name=name)
    old = before.setdefault(weight, weight.detach().clone()).float().cpu().reshape(len(weight), -1)
    check_size(name, module, (old.shape[0], old.shape[1]))
    yield weight, module.delta(old)
    if for_bias is not None:
        before.setdefault(bias, bias.detach().clone())
        yield bias, for_bias


def _start(layers: Mapping[str, Layer], settings: AdapterConfig) -> None:
    """Give freshly initialized layers the change of the adapter that the settings start from, if they name one.

    A change of a lower rank is taken exactly, and the other ranks stay as they are initialized; of one of a higher rank
    the best approximation is taken (Eckart & Young 1936). Layers that the file does not change stay as they are.

    Raises:
        UserError: the file is not there or no adapter, is for another base model, changes layers that are not trained,
            or is of a kind that is no low-rank change.
    """
    path = _start_file(settings)
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


def _start_file(settings: AdapterConfig) -> Path | None:
    if not isinstance(settings, Lora) or not settings.start:
        return None
    path = Path(settings.start).expanduser()
    if not path.is_file() or not paths.is_allowed(path):
        raise UserError("The adapter {file} to start from is not there.", "Choose another one.", file=path.name)
    return path


def start_checksum(settings: AdapterConfig) -> str:
    """Return the SHA-256 of the adapter that the settings start from; "" if they name none.

    Raises:
        UserError: it is not there.
    """
    path = _start_file(settings)
    return storage.sha256(path) if path else ""


def start_note(settings: AdapterConfig) -> str:
    """Return a sentence about a start of a higher rank than the adapter's; "" if its change is taken exactly."""
    path, rank = _start_file(settings), settings.rank
    highest = max(module.rank for module in reader.read(path).modules.values()) if path else 0
    if path is None or highest <= rank:
        return ""
    return _(
        "The adapter {file} has rank {highest}, this run {rank}: it starts from the best approximation.",
        file=path.name,
        highest=highest,
        rank=rank,
    )
