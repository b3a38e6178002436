"""Adapted layers as peft builds them, by kind: their trained tensors, their tensors in files, and their effect.

A layer has its place in the model, `owner` and `attribute`, and the `module` that peft put there, whose
`get_base_layer()` is the original. The names in files are those that LyCORIS and kohya's scripts made common;
`adapter_files.reader` reads them. A layer's effect is computed by peft, so that a comparison with the file compares two
computations. It is the change of the weight at strength 1 on the CPU, flattened to [out, in * kh * kw]. Random numbers
come from the seed and the layer's name.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.loha import LoHaLayer
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from trainer.adapter_files.modules import Module, fits
from trainer.errors import UserError
from trainer.i18n import _
from trainer.rng import generator

ADAPTER = "default"
MAGNITUDE = "magnitude_by_input"
PeftLayer = Any  # peft is untyped


def check_size(name: str, module: Module, size: tuple[int, int]) -> None:
    """Refuse a module of an adapter file that does not fit a weight of this size, [out, in * kh * kw].

    Raises:
        UserError: it does not fit.
    """
    if not fits(module, size):
        raise UserError(
            "{name} has a different size in the base model.",
            _("Choose the base model that it was trained on."),
            name=name,
        )


@dataclass(frozen=True)
class LoraPair:
    """LoRA, B A, Hu et al. 2021; with a magnitude for each input (`decompose`), DoRA, Liu et al. 2024 (section 4.1)."""

    owner: nn.Module
    attribute: str
    module: LoraLayer

    @property
    def down(self) -> Tensor:
        """[rank, in] or [rank, in, kh, kw]."""
        weight: Tensor = self.module.lora_A[ADAPTER].weight
        return weight

    @property
    def up(self) -> Tensor:
        """[out, rank] or [out, rank, 1, 1]."""
        weight: Tensor = self.module.lora_B[ADAPTER].weight
        return weight

    @property
    def scale(self) -> float:
        """Factor of the product, in whichever way peft scales."""
        return float(self.module.scaling[ADAPTER])

    @property
    def magnitude(self) -> nn.Parameter | None:
        """Length of each input's column of the new weight, [1, in] or [1, in, 1, 1]; None if it is not a DoRA."""
        return getattr(self.module, MAGNITUDE, None)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return down, up, and for DoRA the magnitude."""
        parameters = {"down": self.module.lora_A[ADAPTER].weight, "up": self.module.lora_B[ADAPTER].weight}
        if self.magnitude is not None:
            parameters["magnitude"] = self.magnitude
        return parameters

    def tensors(self) -> dict[str, Tensor]:
        """Return `lora_down.weight`, `lora_up.weight`, `alpha`, and for DoRA `dora_scale`.

        The factors of a DoRA hold its scale: SD.Next normalizes before it multiplies by alpha / rank.
        """
        rank = self.down.shape[0]
        if self.magnitude is None:
            alpha = torch.tensor(self.scale * rank)
            return {"alpha": alpha, "lora_down.weight": self.down, "lora_up.weight": self.up}
        up = self.scale * self.up
        alpha = torch.tensor(float(rank))
        return {"alpha": alpha, "lora_down.weight": self.down, "lora_up.weight": up, "dora_scale": self.magnitude}

    def delta(self) -> Tensor:
        """Return scale * B A; for DoRA the new weight minus the old one."""
        down, up = self.down.detach().float().cpu(), self.up.detach().float().cpu()
        change = self.scale * (up.flatten(1) @ down.flatten(1))
        if self.magnitude is None:
            return change
        weight = base_weight(self)
        updated = (weight + change).reshape(self.module.get_base_layer().weight.shape)
        scaled: Tensor = updated * self.input_factor().detach().float().cpu()
        return scaled.flatten(1) - weight

    def input_factor(self) -> Tensor:
        """Return a DoRA's magnitude over the norm of the new columns, which takes no gradient (section 4.3)."""
        magnitude = self.magnitude
        assert magnitude is not None
        with torch.no_grad(), torch.autocast(magnitude.device.type, enabled=False):
            change = self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))
            weight = self.module.get_base_layer().weight.float()
            norm = _norm_by_input(weight + change.reshape(weight.shape))
        return magnitude / norm

    def reset(self, seed: int, name: str) -> None:
        """Draw down Kaiming-uniform with a = sqrt(5) on the CPU in fp32, the same for every device; up is zero."""
        with torch.no_grad():
            self.down.copy_(_uniform(self.down, generator(seed, name)))
            self.up.zero_()
            if self.magnitude is not None:
                self.magnitude.copy_(_norm_by_input(self.module.get_base_layer().weight.detach().float()))


@dataclass(frozen=True)
class Hadamard:
    """LoHa, (A1 B1) * (A2 B2), Hyeon-Woo et al. 2022, https://arxiv.org/abs/2108.06098 (section 2.2)."""

    owner: nn.Module
    attribute: str
    module: LoHaLayer

    def trained(self) -> dict[str, nn.Parameter]:
        """Return `hada_w1_a` [out, rank], `hada_w1_b` [rank, in * kh * kw], and the same for the second factor."""
        roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        return {role: getattr(self.module, role)[ADAPTER] for role in roles}

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors and `alpha`."""
        alpha = float(self.module.scaling[ADAPTER]) * self.module.r[ADAPTER]
        return {"alpha": torch.tensor(alpha), **self.trained()}

    def delta(self) -> Tensor:
        """Return the change as peft adds it to the weight."""
        return _change(self.module)

    def reset(self, seed: int, name: str) -> None:
        """Draw normal values, but zero for one factor; standard deviations as in LyCORIS: 0.1 for w1_a, else 1."""
        with torch.no_grad():
            for role, parameter in self.trained().items():
                fresh = torch.randn(parameter.shape, generator=generator(seed, name, role))
                parameter.copy_(fresh * {"hada_w1_a": 0.1, "hada_w2_a": 0.0}.get(role, 1.0))


@dataclass(frozen=True)
class Kronecker:
    """LoKr, W1 (x) W2, Yeh et al. 2024, https://arxiv.org/abs/2309.14859 (section 3.2); W2 may be of low rank."""

    owner: nn.Module
    attribute: str
    module: LoKrLayer

    def trained(self) -> dict[str, nn.Parameter]:
        """Return `lokr_w1`, and `lokr_w2` or `lokr_w2_a` and `lokr_w2_b`."""
        roles = ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
        return {role: getattr(self.module, role)[ADAPTER] for role in roles if ADAPTER in getattr(self.module, role)}

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors and `alpha`; two full matrices hold their scale, as no program scales those."""
        scale, tensors = float(self.module.scaling[ADAPTER]), dict[str, Tensor](self.trained())
        if "lokr_w2" in tensors:
            return {"alpha": torch.tensor(1.0), **tensors, "lokr_w1": scale * tensors["lokr_w1"]}
        return {"alpha": torch.tensor(scale * self.module.r[ADAPTER]), **tensors}

    def delta(self) -> Tensor:
        """Return the change as peft adds it to the weight."""
        return _change(self.module)

    def reset(self, seed: int, name: str) -> None:
        """Draw Kaiming-uniform values, but zero for the last factor."""
        *first, (_, last) = self.trained().items()
        with torch.no_grad():
            for role, parameter in first:
                parameter.copy_(_uniform(parameter, generator(seed, name, role)))
            last.zero_()


Layer = LoraPair | Hadamard | Kronecker


def known(owner: nn.Module, attribute: str, module: nn.Module) -> Layer | None:
    """Wrap a layer of peft; None if it is of another kind."""
    if isinstance(module, LoraLayer):
        return LoraPair(owner, attribute, module)
    if isinstance(module, LoHaLayer):
        return Hadamard(owner, attribute, module)
    if isinstance(module, LoKrLayer):
        return Kronecker(owner, attribute, module)
    return None


def base_weight(layer: Layer) -> Tensor:
    """Return the frozen weight below a layer in fp32 on the CPU, flattened to [out, in * kh * kw]."""
    weight: Tensor = layer.module.get_base_layer().weight
    return weight.detach().float().cpu().flatten(1)


def decompose(layer: LoraPair) -> None:
    """Make a DoRA of a LoRA: the columns of its new weight V are scaled to trained lengths, V diag(s).

    peft trains a length for each row, but most programs read one for each column, as LyCORIS wrote at first. As
    V diag(s) x is V (s x), the inputs are scaled, in fp32: s is close to 1, where bf16 has two digits.
    """

    def scale_inputs(module: PeftLayer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if module.disable_adapters:
            return None
        first, *others = inputs
        return (first * layer.input_factor()).to(first.dtype), *others

    weight = layer.module.get_base_layer().weight
    length = _norm_by_input(weight.detach().float()).to(layer.down.device)
    layer.module.register_parameter(MAGNITUDE, nn.Parameter(length))
    layer.module.register_forward_pre_hook(scale_inputs)


def _norm_by_input(weight: Tensor) -> Tensor:
    """Return the norms of a weight's columns, [1, in] or [1, in, 1, 1]."""
    dims = [dim for dim in range(weight.dim()) if dim != 1]
    norm: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    return norm


def drop_ranks(layer: LoraPair, share: float) -> None:
    """Drop random ranks of a pair in training, different ones for each image, and scale the others up."""

    def drop(module: nn.Module, _: tuple[Tensor, ...], ranks: Tensor) -> Tensor:
        if ranks.dim() == 4:  # [b, rank, h, w]
            return functional.dropout2d(ranks, share, module.training)
        tokens = ranks if ranks.dim() == 3 else ranks[:, None]  # [b, tokens, rank] or [b, rank]
        return functional.dropout1d(tokens.mT, share, module.training).mT.reshape(ranks.shape)

    layer.module.lora_A[ADAPTER].register_forward_hook(drop)


def _change(module: PeftLayer) -> Tensor:
    with torch.no_grad():
        change: Tensor = module.get_delta_weight(ADAPTER)
    return change.float().cpu().flatten(1)


def _uniform(like: Tensor, rng: torch.Generator) -> Tensor:
    bound = 1 / math.sqrt(like[0].numel())
    return torch.empty(like.shape).uniform_(-bound, bound, generator=rng)
