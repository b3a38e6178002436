"""The adapter of a base model: attach it to the trained layers, start it from a file, or patch files into weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from trainer import devices
from trainer.adapter_files import low_rank, reader
from trainer.adapter_files.modules import Module, bias_change
from trainer.adapter_files.reader import AdapterFile
from trainer.base_models import adapter_location, layer_names
from trainer.config.adapter import AdapterConfig, Lora, target_layers
from trainer.errors import UserError
from trainer.families.adapter_layers import ADAPTER, Layer, LoraPair, check_size, decompose, drop_ranks, known
from trainer.families.family import Family
from trainer.families.hardware import offload
from trainer.i18n import _

NOTED = 0.005  # share of the effect of the adapter to start from that a run may lose without a note
_NAMED = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, BaseTunerLayer)


@dataclass(frozen=True)
class Adapter:
    """Trained weights, by the name that other programs know each module by (`lora_unet_...`, `lora_te_...`)."""

    layers: dict[str, Layer]
    hosts: tuple[nn.Module, ...]
    settings: AdapterConfig
    start_error: float = 0.0  # share of the effect of the adapter to start from that its rank does not hold

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

    def reset(self, seed: int) -> float:
        """Initialize all layers, so that they change nothing yet, or what the adapter to start from changes.

        Returns:
            Share of that one's effect that the ranks do not hold, in the Frobenius norm.

        Raises:
            UserError: training cannot start from that one.
        """
        for name, layer in self.layers.items():
            layer.reset(seed, name)
        return _start(self.layers, self.settings)

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


def outlined(family: Family, settings: AdapterConfig, *, text_encoder: bool) -> dict[str, dict[str, Tensor]]:
    """Return the tensors that an adapter of these settings has, by module and ending, of a base without weights.

    All but `alpha` have shapes alone.

    Raises:
        UserError: as `attach`.
    """
    layers = _attach(family, settings, text_encoder=text_encoder).layers
    return {name: layers[name].tensors() for name in sorted(layers)}


def attach(family: Family, settings: AdapterConfig, *, text_encoder: bool, seed: int) -> Adapter:
    """Attach an adapter to a base model; it changes nothing yet (Hu et al. 2021, section 4.1), or starts from another.

    Layers that the other one changes are adapted, too, so that it is kept whole.

    Raises:
        UserError: the blocks in the settings match nothing, so that nothing would train; or there is no text encoder
            that takes an adapter; or it cannot start from the other adapter.
    """
    adapter = _attach(family, settings, text_encoder=text_encoder)
    return replace(adapter, start_error=adapter.reset(seed))


def _attach(family: Family, settings: AdapterConfig, *, text_encoder: bool) -> Adapter:
    paths = _matching(family.denoiser, target_layers(settings.targets, family.denoiser_targets))
    if settings.blocks:
        paths = [path for path in paths if any(block in path for block in settings.blocks)]
    targets = {family.denoiser: paths}
    if text_encoder:
        targets |= _text_targets(family)
    if not all(targets.values()):
        raise UserError(
            "No layer of the base model has any of these in its name: {layers}.",
            "Name blocks such as {examples}, one per line, or none for all of them.",
            examples="up_blocks, mid_block, down_blocks.1"
            if family.spec.unet
            else f"{family.spec.modules.blocks[0]}.0.",
            layers=", ".join(settings.blocks or target_layers(settings.targets, family.denoiser_targets)),
        )
    _add_started(targets, family, settings)
    for host, paths in targets.items():
        with nullcontext() if family.device != devices.NOWHERE else devices.NOWHERE:
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
    adapter.train(True)
    return adapter


def _add_started(targets: dict[nn.Module, list[str]], family: Family, settings: AdapterConfig) -> None:
    """Add the layers that the adapter to start from changes to the paths by their component.

    Raises:
        UserError: the base model has no such layer, or it is in a text encoder, which is not trained.
    """
    file, modules = _start_modules(settings)
    missing = {name for name in modules if not name.startswith(family.idle)}
    if not missing:
        return
    places = {module: (host, place) for host in targets for place, module in host.named_modules()}
    for name, _owner, _attribute, module in named(family):
        if name in missing and module in places and isinstance(module, nn.Linear | nn.Conv2d):
            missing.remove(name)
            host, place = places[module]
            targets[host] += [place] * (place not in targets[host])
    if missing:
        remedy = _("Choose the base model that it was trained on.")
        if len(targets) == 1 and all(name.startswith(tuple(family.text_encoders)) for name in missing):
            remedy = _("Turn on Text encoder.")
        if all(name.startswith(layer_names.T5_PREFIX) for name in missing):
            remedy = _("Start from an adapter without layers of T5, which is not trained.")
        raise UserError(
            "The adapter {file} also changes {count} layers that this run does not train, such as {layer}.",
            remedy,
            file=file,
            count=len(missing),
            layer=min(missing),
        )


def _matching(module: nn.Module, endings: Sequence[str]) -> list[str]:
    dotted = tuple(f".{ending}" for ending in endings)
    layers = [path for path, layer in module.named_modules() if hasattr(layer, "weight")]  # not lists of them
    return [path for path in layers if f".{path}".endswith(dotted)]


def _text_targets(family: Family) -> dict[nn.Module, list[str]]:
    """Return the paths of the layers to adapt in each text encoder.

    Raises:
        UserError: none of them takes an adapter.
    """
    if not family.text_encoders:
        raise UserError(
            "The text encoder of {family} takes no adapter.",
            "Set training.text_encoder to false.",
            family=family.spec.title,
        )
    targets = {}
    for prefix, encoder in family.text_encoders.items():
        paths = _matching(encoder, family.text_targets)
        targets[encoder] = [path for path in paths if not _text_name(prefix, path).startswith(family.idle)]
    return targets


def _text_name(prefix: str, path: str) -> str:
    if path == layer_names.TEXT_PROJECTION or f"{prefix}_" == layer_names.T5_PREFIX:
        return f"{prefix}_{path.replace('.', '_')}"
    # transformers 5 leaves the first level out in one of its two classes.
    return f"{prefix}_text_model_" + path.removeprefix("text_model.").replace(".", "_")


def named(family: Family) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """Yield all linear, convolution and norm layers, adapted or not, with the names that other programs know them by.

    Each is (name, owner, attribute there, layer); what an adapter put inside of one is left out.
    """
    hosts = {f"lora_{family.spec.denoiser}": family.denoiser, **family.text_encoders}
    if t5 := family.prompt_encoders().get(layer_names.T5):
        hosts[layer_names.T5_PREFIX.removesuffix("_")] = t5
    for prefix, host in hosts.items():
        adapted_path = "\0"  # no path begins with it
        for path, module in host.named_modules():
            if path.startswith(adapted_path) or not isinstance(module, _NAMED):
                continue
            if isinstance(module, BaseTunerLayer):
                adapted_path = f"{path}."
            owner, _, attribute = path.rpartition(".")
            name = _text_name(prefix, path)
            if host is family.denoiser:
                name = f"{prefix}_{family.module_name(path)}"
            yield name, host.get_submodule(owner), attribute, module


def adapted(family: Family) -> dict[str, Layer]:
    """Return the modules of a model that have an adapter on them, by the names that other programs know them by."""
    layers = {name: known(owner, attribute, module) for name, owner, attribute, module in named(family)}
    return {name: layer for name, layer in layers.items() if layer is not None}


@contextmanager
def patched(family: Family, changes: Sequence[tuple[AdapterFile, float]]) -> Iterator[None]:
    """Add adapter files at their strengths to the weights of the base model, inside the `with`.

    For kinds of adapters that diffusers does not load. Layers get the biases that they lack. Afterwards the model is
    what it was, bit for bit.

    Raises:
        UserError: a file is for another base model.
    """
    offload.gather(family.denoiser)
    # Where diffusers has put an adapter of its own, peft shows the weight below it.
    layers = {name: module for name, _, _, module in named(family)}
    before: dict[nn.Parameter, Tensor] = {}
    extended: set[nn.Linear | nn.Conv2d] = set()
    try:
        for file, strength in changes:
            for name, module in file.modules.items():
                layer = layers.get(name)
                if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is None and bias_change(module) is not None:
                    layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
                    extended.add(layer)
                for parameter, change in _changes(name, module, layer, before):
                    with torch.no_grad():
                        parameter.add_(change.reshape(parameter.shape).to(parameter), alpha=strength)
        yield
    finally:
        offload.gather(family.denoiser)
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)
        for extended_layer in extended:
            extended_layer.bias = None


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


def _start(layers: Mapping[str, Layer], settings: AdapterConfig) -> float:
    """Give freshly initialized layers the change of the adapter that the settings start from, if they name one.

    A change of a lower rank is taken exactly, and the other ranks stay as they are initialized; of one of a higher rank
    the best approximation is taken (Eckart & Young 1936). Layers that the file does not change stay as they are.

    Returns:
        Share of the change that is lost, in the Frobenius norm.

    Raises:
        UserError: the file is not there, not an adapter, for another base model, or not a low-rank change.
    """
    whole = lost = 0.0
    _file, modules = _start_modules(settings)
    for name in sorted(modules.keys() & layers.keys()):
        layer = layers[name]
        assert isinstance(layer, LoraPair)  # the settings of other kinds have no start
        energy, missed = _take(layer, modules[name], name)
        whole, lost = whole + energy, lost + missed
    return math.sqrt(lost / (whole or 1.0))


def _take(layer: LoraPair, module: Module, name: str) -> tuple[float, float]:
    """Give a layer a change; return its squared norm, and that of what is lost."""
    weight = layer.module.get_base_layer().weight
    check_size(name, module, (len(weight), weight[0].numel()))
    pair = low_rank.factors(module, tuple(weight.shape[1:]))
    cut = low_rank.Cut(pair, float((pair.up.T @ pair.up * (pair.down @ pair.down.T)).sum()), 0.0)
    if pair.rank > layer.down.shape[0]:
        cut = low_rank.cut(pair, layer.down.shape[0])
    rank = cut.pair.rank
    factors = cut.pair.module(layer.scale * rank, torch.float32)
    with torch.no_grad():
        layer.down[:rank] = factors.down.reshape(rank, *layer.down.shape[1:]).to(layer.down)
        layer.up[:, :rank] = factors.up.reshape(len(layer.up), rank, *layer.up.shape[2:]).to(layer.up)
    return cut.whole, cut.lost


def _start_modules(settings: AdapterConfig) -> tuple[str, Mapping[str, Module]]:
    """Return name and modules of the adapter that the settings start from; none if they name none."""
    if path := _start_file(settings):
        return path.name, reader.read(path).modules
    return "", {}


def _start_file(settings: AdapterConfig) -> Path | None:
    if not isinstance(settings, Lora) or not settings.start:
        return None
    return adapter_location.find(settings.start)


def start_note(adapter: Adapter) -> str:
    """Return a sentence about what the adapter's ranks do not hold of the one that it starts from; "" if they do."""
    path = _start_file(adapter.settings)
    if path is None or adapter.start_error < NOTED:
        return ""
    return _(
        "The run starts from the best approximation of the adapter {file} that rank {rank} can hold. It differs by "
        "{error:.0%} of the effect.",
        file=path.name,
        error=adapter.start_error,
        rank=adapter.settings.rank,
    )
