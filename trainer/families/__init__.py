"""Families of base models, and the adapter that is attached to one.

A family is one file that says how its models are loaded, encode pictures and prompts, and predict. Nothing here
knows of data sets, losses or files for other programs.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer.adapters import Lora
from trainer.config import ModelConfig
from trainer.families.sd import SD, Conditioning
from trainer.randomness import generator

ADAPTER = "default"
# Below this many parameters a second CPU thread costs more than it brings: micro's training step takes 0.109 s with
# one thread and 0.100 s with two, at twice the CPU time.
SMALL = 50_000_000
Objective = Literal["epsilon", "v_prediction"]

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
    denoiser: nn.Module
    text_encoders: dict[str, nn.Module]
    objective: Objective
    alphas_cumprod: Tensor
    device: torch.device
    architecture: str
    base_version: str

    @classmethod
    def load(cls, model: ModelConfig, device: torch.device, dtype: torch.dtype) -> Self:
        """Load the frozen base model, by its name or path, without any network."""

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [b, c, h, w] of the scaled latents of pictures [b, 3, H, W] in -1..1."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """What the denoiser is given for each prompt; tensors whose rows belong to the prompts."""

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output [b, c, h, w] for noisy latents [b, c, h, w] at timesteps [b]."""

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Number of tokens of a prompt, and how many of them the text encoder can take."""

    def pipeline(self) -> Any:  # noqa: ANN401 - diffusers' pipelines are untyped
        """The live model as a diffusers pipeline, for previews."""

    def encoders(self) -> dict[str, nn.Module]:
        """The modules whose outputs are cached, by name."""


FAMILIES: dict[str, type[Family]] = {"sd15": SD}


def load(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> Family:
    """Load a base model; everything in it is frozen.

    Raises:
        UserError: it is not there, or is no model of this family.
    """
    family = FAMILIES[model.family].load(model, device, dtype)
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

    def train(self, mode: bool) -> None:
        """Whether dropout is on in the adapter's layers."""
        for layer in self.layers.values():
            layer.lora.train(mode)

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
    prefixes = {f"{prefix}_text_model_": encoder for prefix, encoder in family.text_encoders.items()}
    for prefix, module in {"lora_unet_": family.denoiser, **prefixes}.items():
        for path, part in module.named_modules():
            if isinstance(part, LoraLayer):
                owner_path, _, attribute = path.rpartition(".")
                name = prefix + path.removeprefix("text_model.").replace(".", "_")
                found[name] = Layer(module.get_submodule(owner_path), attribute, part)
    return found


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's tensors."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.dim() else b"")
    return total.hexdigest()
