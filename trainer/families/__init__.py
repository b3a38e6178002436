"""Families of base models, and the adapter that is attached to one.

A family is one file that says how its models are loaded, encode pictures and prompts, and predict. Nothing here
knows of data sets, losses or files for other programs.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import peft
import torch
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor, nn

from trainer import detect
from trainer.adapters import Lora
from trainer.config import ModelConfig
from trainer.detect import TITLES, Base, FamilyName, Objective
from trainer.errors import UserError
from trainer.families import pipelines
from trainer.families.sd import SD, Conditioning
from trainer.families.sdxl import SDXL
from trainer.randomness import generator

ADAPTER = "default"
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
    "fingerprint",
    "load",
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
        """Load the frozen base model that was found at a path, without any network."""

    def set_objective(self, objective: Objective) -> None:
        """Take the denoiser's output as noise or as v, in training and in pictures."""

    def module_name(self, path: str) -> str:
        """The name of a module of the denoiser in adapter files, without prefix, by its path."""

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [b, c, h, w] of the scaled latents of pictures [b, 3, H, W] in -1..1."""

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Pictures from scaled latents [b, c, h, w]."""

    def draw_latents(self, prompt: str, *, seed: int, steps: int, guidance: float, side: int) -> Tensor:
        """Scaled latents [c, h, w] of a square picture, the same for the same request."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """What the denoiser is given for each prompt; tensors whose rows belong to the prompts."""

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
    """Load a base model; everything in it is frozen.

    Raises:
        UserError: it is not there, cannot be used, or is of another family than the settings say.
    """
    path, revision = pipelines.locate(model)
    found = replace(detect.look(path), revision=revision)
    if model.family not in ("auto", found.family):
        raise UserError(
            f"The base model {path.name!r} is {TITLES[found.family]}, but the settings say {TITLES[model.family]}.",
            f"Set the family to 'auto' or {found.family!r}, or choose another base model.",
        )
    family = FAMILIES[found.family].load(path, found, device, dtype)
    if model.objective != "auto":
        family.set_objective(model.objective)
    if device.type == "cpu" and sum(p.numel() for p in family.denoiser.parameters()) < SMALL:
        torch.set_num_threads(1)
    return family


@dataclass(frozen=True)
class Layer:
    """One adapted module: where it is in its model, its LoRA pair, and what it replaced."""

    owner: nn.Module
    attribute: str
    lora: LoraLayer

    @property
    def down(self) -> Tensor:
        """[rank, in] or [rank, in, kh, kw]."""
        weight: Tensor = self.lora.lora_A[ADAPTER].weight
        return weight

    @property
    def up(self) -> Tensor:
        """[out, rank] or [out, rank, 1, 1]."""
        weight: Tensor = self.lora.lora_B[ADAPTER].weight
        return weight

    @property
    def alpha(self) -> float:
        """The effective scale times the rank, so that scale = alpha / rank also where peft scales otherwise."""
        return float(self.lora.scaling[ADAPTER]) * self.down.shape[0]

    def delta(self) -> Tensor:
        """The change of the weight at strength 1 on the CPU, flattened to [out, in * kh * kw]."""
        down, up = self.down.detach().float().cpu(), self.up.detach().float().cpu()
        return (self.alpha / down.shape[0]) * (up.flatten(1) @ down.flatten(1))


@dataclass(frozen=True)
class Adapter:
    """The trained weights, by the name that other programs know each module by (`lora_unet_...`, `lora_te_...`)."""

    layers: dict[str, Layer]
    hosts: tuple[nn.Module, ...]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All trained tensors, in a fixed order."""
        for name in sorted(self.layers):
            layer = self.layers[name].lora
            yield layer.lora_A[ADAPTER].weight
            yield layer.lora_B[ADAPTER].weight

    def groups(self, text_factor: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer; `factor` scales the learning rate of each."""
        parts: dict[float, list[nn.Parameter]] = {}
        for name in sorted(self.layers):
            layer = self.layers[name].lora
            factor = 1.0 if name.startswith("lora_unet_") else text_factor
            parts.setdefault(factor, []).extend((layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight))
        return [{"params": parameters, "factor": factor} for factor, parameters in parts.items()]

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The file form that the programs share: `.lora_down.weight`, `.lora_up.weight`, `.alpha` for each module."""
        found = {}
        for name in sorted(self.layers):
            layer = self.layers[name]
            found[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=torch.float32)
            found[f"{name}.lora_down.weight"] = layer.down.detach().to("cpu", dtype).contiguous()
            found[f"{name}.lora_up.weight"] = layer.up.detach().to("cpu", dtype).contiguous()
        return found

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the values of `tensors()` of an adapter of the same form.

        Raises:
            UserError: the names or shapes are not those of this adapter.
        """
        own = self.tensors()
        odd = sorted({key.partition(".")[0] for key in own.keys() ^ tensors.keys()})
        odd += [key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape]
        if odd:
            raise UserError(
                f"The saved adapter has another form than the settings ask for (first difference: {odd[0]}).",
                "Give rank and trained parts the values they had, or start a new run.",
            )
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.down.copy_(tensors[f"{name}.lora_down.weight"])
                layer.up.copy_(tensors[f"{name}.lora_up.weight"])

    def set_strength(self, strength: float) -> None:
        """Scale the adapter's effect; 1 = as trained."""
        for layer in self.layers.values():
            layer.lora.set_scale(ADAPTER, strength)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base model alone, inside the `with`."""
        self.set_strength(0.0)
        try:
            yield
        finally:
            self.set_strength(1.0)

    def detach(self) -> None:
        """Put the base model's own modules back; the adapter's tensors stay readable."""
        for layer in self.layers.values():
            setattr(layer.owner, layer.attribute, layer.lora.get_base_layer())
        for host in self.hosts:
            del host.peft_config


def attach(family: Family, settings: Lora, *, text_encoder: bool, seed: int) -> Adapter:
    """Put a fresh adapter on a base model: it starts as no change at all (Hu et al. 2021, section 4.1).

    Raises:
        RuntimeError: a module list matched nothing, which would train nothing.
    """
    hosts = family.text_encoders.values() if text_encoder else ()
    for module, targets in ((family.denoiser, family.denoiser_targets), *((one, family.text_targets) for one in hosts)):
        peft.inject_adapter_in_model(settings.build(targets), module, adapter_name=ADAPTER)
        if not any(isinstance(part, LoraLayer) for part in module.modules()):
            raise RuntimeError(f"no module of {type(module).__name__} matches {targets}")
    layers = adapted(family)
    for name in [name for name in layers if name.startswith(family.idle)]:
        layer = layers.pop(name)
        setattr(layer.owner, layer.attribute, layer.lora.get_base_layer())
    for name in sorted(layers):
        layer = layers[name]
        for part in (layer.lora.lora_A, layer.lora.lora_B):
            part.to(torch.float32).requires_grad_(True)  # small updates would be lost in the base's precision
        weight = layer.down
        with torch.no_grad():
            # Kaiming-uniform with a = sqrt(5), drawn on the CPU in fp32, the same on every device.
            bound = 1 / math.sqrt(weight[0].numel())
            fresh = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator(seed, name))
            weight.copy_(fresh)
            layer.up.zero_()
    return Adapter(layers, (family.denoiser, *hosts))


def adapted(family: Family) -> dict[str, Layer]:
    """All modules of a model that have an adapter on them, by the names that other programs know them by."""
    found = {}
    for prefix, module in {"lora_unet": family.denoiser, **family.text_encoders}.items():
        for path, part in module.named_modules():
            if isinstance(part, LoraLayer):
                owner_path, _, attribute = path.rpartition(".")
                if module is family.denoiser:
                    name = family.module_name(path)
                else:  # transformers 5 leaves the first level out in one of its two classes
                    name = "text_model_" + path.removeprefix("text_model.").replace(".", "_")
                found[f"{prefix}_{name}"] = Layer(module.get_submodule(owner_path), attribute, part)
    return found


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's tensors."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.dim() else b"")
    return total.hexdigest()
