"""Families of base models, and the adapter that is attached to one.

A family is one file that says how its models are loaded, encode pictures and prompts, and predict. Nothing here
knows of data sets, losses or files for other programs.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import Tensor, nn

from trainer.adapter_files.reader import AdapterFile
from trainer.base_models import detect
from trainer.base_models.detect import TITLES, Base, FamilyName, Objective
from trainer.config import ModelConfig
from trainer.config.adapter import AdapterConfig, Lora, chosen
from trainer.errors import UserError
from trainer.families import pipelines
from trainer.families.layers import ADAPTER, Layer, LoraPair, base_weight, drop_ranks, known
from trainer.families.quantised import quantise
from trainer.families.sd import SD, Conditioning
from trainer.families.sdxl import SDXL

# Below this many parameters a second CPU thread costs more than it brings: micro's training step takes 0.109 s with
# one thread and 0.100 s with two, at twice the CPU time.
SMALL = 50_000_000

__all__ = [
    "ADAPTER",
    "FAMILIES",
    "Adapter",
    "Conditioning",
    "Family",
    "Layer",
    "adapted",
    "attach",
    "base_weight",
    "fingerprint",
    "load",
    "named",
    "patched",
    "place",
    "precision",
    "on_device",
    "read",
]


class Family(Protocol):
    """A diffusion model that can take an adapter."""

    denoiser_targets: ClassVar[tuple[str, ...]]
    text_targets: ClassVar[tuple[str, ...]]
    idle: tuple[str, ...]  # how the names of modules begin whose output is never used, so that they cannot learn
    found: Base
    denoiser: nn.Module
    text_encoders: dict[str, nn.Module]
    objective: Objective
    alphas_cumprod: Tensor
    device: torch.device

    @property
    def architecture(self) -> str:
        """As in `modelspec.architecture` of an adapter file."""

    @property
    def base_version(self) -> str:
        """As in `ss_base_model_version` of an adapter file."""

    @classmethod
    def load(cls, path: Path, found: Base, device: torch.device, dtype: torch.dtype) -> Self:
        """Load the frozen base model that was found at a path into main memory, without any network."""

    def set_objective(self, objective: Objective) -> None:
        """Take the denoiser's output as noise or as v, in training and in pictures."""

    def module_name(self, path: str) -> str:
        """The name of a linear or convolution layer of the denoiser in adapter files, without prefix, by its path."""

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [b, c, h, w] of the scaled latents of pictures [b, 3, H, W] in -1..1."""

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Pictures from scaled latents [b, c, h, w]."""

    def draw_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Scaled latents [c, h, w] of a square picture, the same for the same request."""

    def encode_prompts(self, prompts: Sequence[str], chunks: int = 1) -> Conditioning:
        """What the denoiser is given for each prompt; tensors whose rows belong to the prompts.

        Of each prompt, `chunks` times as many tokens are seen as the text encoder can take.
        """

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b].

        The conditioning is that of the prompts with, under `sizes`, how large each picture was and where it was
        cropped [b, 6]; a family may leave it unused.
        """

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Number of tokens of a prompt, and how many of them the text encoder can take."""

    def pipeline(self) -> Any:  # noqa: ANN401 - diffusers' pipelines are untyped
        """The live model as a diffusers pipeline, for previews."""

    def encoders(self) -> dict[str, nn.Module]:
        """The modules whose outputs are cached, by name."""


FAMILIES: dict[FamilyName, type[Family]] = {"sd15": SD, "sd21": SD, "sdxl": SDXL}


def load(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> Family:
    """Load a base model onto its device; everything in it is frozen.

    Raises:
        UserError: it is not there, cannot be used, or is of another family than the settings say.
    """
    family = read(model, device, dtype)
    for module in (family.denoiser, *family.encoders().values()):
        module.to(device)
    return family


def precision(model: ModelConfig, device: torch.device) -> str:
    """The precision that serves a base model best on a device: bf16 where the hardware computes in it, else fp32.

    On a CPU with bf16 instructions a step of Stable Diffusion takes less than half the time (9.3 and 4.1 s, 256 pixels,
    one thread); a miniature gains nothing, and in fp32 its figures are the same on all machines.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
    return "bf16" if has and not detect.is_small(pipelines.locate(model)[0]) else "fp32"


def read(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> Family:
    """Load a base model for a device into main memory, from where its parts are brought there when they are needed.

    Raises:
        UserError: it is not there, cannot be used, or is of another family than the settings say.
    """
    path, revision = pipelines.locate(model)
    found = replace(detect.look(path), revision=revision)
    if model.family not in ("auto", found.family):
        raise UserError(
            "The base model {name!r} is {family}, but the settings say {other}.",
            "Set the family to 'auto' or {key!r}, or choose another base model.",
            name=path.name,
            family=TITLES[found.family],
            other=TITLES[model.family],
            key=found.family,
        )
    family = FAMILIES[found.family].load(path, found, device, dtype)
    if model.objective != "auto":
        family.set_objective(model.objective)
    quantise(family.denoiser, model.weights)
    if device.type == "cpu" and sum(p.numel() for p in family.denoiser.parameters()) < SMALL:
        torch.set_num_threads(1)
    return family


@contextmanager
def on_device(family: Family, *modules: nn.Module) -> Iterator[None]:
    """Keep parts of a model on its device inside the `with`; those that were not there leave it, after errors too."""
    absent = [module for module in modules if next(module.parameters()).device.type != family.device.type]
    begun = []
    try:
        for module in absent:
            begun.append(module)  # before it moves: where memory runs out, a part of it is there already
            module.to(family.device)
        yield
    finally:
        for module in begun:
            module.to("cpu")


def place(family: Family, *, text_encoder: bool) -> None:
    """Bring to the device what each training step computes with: the rest stays in main memory until it is needed."""
    for module in (family.denoiser, *(family.text_encoders.values() if text_encoder else ())):
        module.to(family.device)


@dataclass(frozen=True)
class Adapter:
    """The trained weights, by the name that other programs know each module by (`lora_unet_...`, `lora_te_...`)."""

    layers: dict[str, Layer]
    hosts: tuple[nn.Module, ...]
    settings: AdapterConfig

    def parameters(self) -> Iterator[nn.Parameter]:
        """All trained tensors, in a fixed order."""
        for name in sorted(self.layers):
            yield from self.layers[name].trained().values()

    def groups(self, text_factor: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer; `factor` scales the learning rate of each."""
        parts: dict[float, list[nn.Parameter]] = {}
        for name in sorted(self.layers):
            for role, parameter in self.layers[name].trained().items():
                factor = 1.0 if name.startswith("lora_unet_") else text_factor
                if role == "up" and isinstance(self.settings, Lora):
                    factor *= self.settings.up_factor
                parts.setdefault(factor, []).append(parameter)
        return [{"params": parameters, "factor": factor} for factor, parameters in parts.items()]

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The file form that the programs share, such as `.lora_down.weight`, `.lora_up.weight` and `.alpha`."""
        return {
            f"{name}.{ending}": tensor.detach().to("cpu", torch.float32 if ending == "alpha" else dtype).contiguous()
            for name in sorted(self.layers)
            for ending, tensor in self.layers[name].tensors().items()
        }

    def reset(self, seed: int) -> None:
        """Begin anew, as no change at all."""
        for name, layer in self.layers.items():
            layer.reset(seed, name)

    def train(self, mode: bool) -> None:
        """Whether dropout is on in the adapter's layers."""
        for layer in self.layers.values():
            layer.module.train(mode)
            layer.module.get_base_layer().train()  # of 4 bits it is packed anew otherwise, in a form without gradient

    def set_strength(self, strength: float) -> None:
        """Scale the adapter's effect; 1 = as trained."""
        for layer in self.layers.values():
            layer.module.set_scale(ADAPTER, strength)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base model alone, inside the `with`."""
        for layer in self.layers.values():
            layer.module.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.module.enable_adapters(True)

    def detach(self) -> None:
        """Put the base model's own modules back; the adapter's tensors stay readable."""
        for layer in self.layers.values():
            setattr(layer.owner, layer.attribute, layer.module.get_base_layer())
        for host in self.hosts:
            del host.peft_config


def attach(family: Family, settings: AdapterConfig, *, text_encoder: bool, seed: int) -> Adapter:
    """Put a fresh adapter on a base model: it starts as no change at all (Hu et al. 2021, section 4.1).

    Raises:
        UserError: the blocks that were asked for match nothing, which would train nothing.
    """
    paths = _matching(family.denoiser, chosen(settings.targets, family.denoiser_targets))
    wanted = {
        family.denoiser: [one for one in paths if not settings.blocks or any(block in one for block in settings.blocks)]
    }
    for prefix, encoder in family.text_encoders.items() if text_encoder else ():
        paths = _matching(encoder, family.text_targets)
        wanted[encoder] = [path for path in paths if not _text_name(prefix, path).startswith(family.idle)]
    if not all(wanted.values()):
        raise UserError(
            "No layer of the base model has one of these in its name: {layers}.",
            "Write blocks such as up_blocks, mid_block or down_blocks.1, one a line, or none for all.",
            layers=", ".join(settings.blocks or chosen(settings.targets, family.denoiser_targets)),
        )
    for host, paths in wanted.items():
        peft.inject_adapter_in_model(settings.build(paths), host, adapter_name=ADAPTER)
    adapter = Adapter(adapted(family), tuple(wanted), settings)
    for layer in adapter.layers.values():
        for parameter in layer.trained().values():
            # Small updates would be lost in the base's precision.
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        # In mixed precision autocast brings the adapter to the inputs; peft would bring the inputs to the adapter.
        layer.module.cast_input_dtype_enabled = family.denoiser.dtype == torch.float32
        if isinstance(layer, LoraPair) and settings.rank_dropout:
            drop_ranks(layer, settings.rank_dropout)
    adapter.reset(seed)
    adapter.train(True)
    return adapter


def _matching(module: nn.Module, endings: Sequence[str]) -> list[str]:
    return [path for path, _ in module.named_modules() if f".{path}".endswith(tuple(f".{one}" for one in endings))]


def _text_name(prefix: str, path: str) -> str:
    # transformers 5 leaves the first level out in one of its two classes.
    return f"{prefix}_text_model_" + path.removeprefix("text_model.").replace(".", "_")


def named(family: Family) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """All linear and convolution layers, adapted or not, by the names that other programs know them by.

    Each as (name, owner, attribute there, layer); what an adapter put inside of one is not named.
    """
    for prefix, host in {"lora_unet": family.denoiser, **family.text_encoders}.items():
        inside = "\0"  # no path begins with it
        for path, module in host.named_modules():
            if path.startswith(inside) or not isinstance(module, nn.Linear | nn.Conv2d | BaseTunerLayer):
                continue
            if isinstance(module, BaseTunerLayer):
                inside = f"{path}."
            owner, _, attribute = path.rpartition(".")
            denoises = host is family.denoiser
            name = f"{prefix}_{family.module_name(path)}" if denoises else _text_name(prefix, path)
            yield name, host.get_submodule(owner), attribute, module


def adapted(family: Family) -> dict[str, Layer]:
    """All modules of a model that have an adapter on them, by the names that other programs know them by."""
    layers = {name: known(owner, attribute, module) for name, owner, attribute, module in named(family)}
    return {name: one for name, one in layers.items() if one is not None}


@contextmanager
def patched(family: Family, changes: Sequence[tuple[AdapterFile, float]]) -> Iterator[None]:
    """Inside the `with`, the base model has the changes of adapter files at their strengths in its own weights.

    For kinds of adapters that diffusers does not load. Afterwards the weights are again what they were, bit for bit.

    Raises:
        UserError: a file is for another base model.
    """
    # Where diffusers has put an adapter of its own, peft shows the weight below it.
    places = {name: module for name, _, _, module in named(family)}
    before: dict[nn.Parameter, Tensor] = {}
    try:
        for file, strength in changes:
            for name, one in file.modules.items():
                weight = getattr(places.get(name), "weight", None)
                if not isinstance(weight, nn.Parameter):
                    raise UserError(
                        "The base model has no {name}.", "Choose the base model that it was trained on.", name=name
                    )
                before.setdefault(weight, weight.detach().clone())
                old = before[weight].float().cpu().flatten(1)
                change = one.delta(old)
                if change.shape != old.shape:
                    raise UserError(
                        "{name} has another size.", "Choose the base model that it was trained on.", name=name
                    )
                with torch.no_grad():
                    weight.add_(change.reshape(weight.shape).to(weight), alpha=strength)
        yield
    finally:
        with torch.no_grad():
            for weight, value in before.items():
                weight.copy_(value)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's tensors."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.dim() else b"")
    return total.hexdigest()
