"""Adapted layers as files hold them, by kind, and the change that each makes to a weight of the base model.

The kinds and their tensors are those of LyCORIS (Yeh et al. 2024, https://arxiv.org/abs/2309.14859), which ComfyUI,
A1111 and others read. Changes are [out, in * kh * kw], at strength 1. Some kinds need the base's `weight`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.base_models import layer_shapes


@dataclass(frozen=True)
class _Scaled:
    """A layer's tensors by the endings of their keys, and `alpha`: scale times rank, or the limit of OFT."""

    parts: dict[str, Tensor]
    alpha: float

    @property
    def rank(self) -> int:
        """Rank of the update, or of its low-rank part; 0 if it has none."""
        return layer_shapes.rank({ending: part.shape for ending, part in self.parts.items()})

    @property
    def scale(self) -> float:
        """Factor of the product of its tensors."""
        return self.alpha / self.rank if self.rank else 1.0


@dataclass(frozen=True)
class _Unscaled:
    """Tensors of a layer of a kind that has neither alpha nor rank."""

    parts: dict[str, Tensor]
    alpha: None = None
    rank: int = 0


class Lora(_Scaled):
    """`lora_down.weight` [rank, in, ...] and `lora_up.weight` [out, rank, ...]; DoRA has `dora_scale` as well.

    That is a magnitude for each input [1, in, ...], which most programs apply, or for each output [out, 1, ...], as in
    peft and in LyCORIS unless told otherwise.
    """

    @property
    def down(self) -> Tensor:
        """[rank, in, ...]."""
        return self.parts["lora_down.weight"]

    @property
    def up(self) -> Tensor:
        """[out, rank, ...]."""
        return self.parts["lora_up.weight"]

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return alpha / rank * up @ down, for a DoRA with its magnitudes."""
        change = self.scale * (self.up.flatten(1).float() @ self.down.flatten(1).float())
        return _with_magnitudes(change, self.parts, weight)


class LoHa(_Scaled):
    """`hada_w1_a` [out, rank], `hada_w1_b` [rank, in * kh * kw], and the same for the second factor."""

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return alpha / rank * the elementwise product of the two low-rank matrices."""
        first, second = (
            self.parts[f"hada_{name}_a"].float() @ self.parts[f"hada_{name}_b"].float() for name in ("w1", "w2")
        )
        return _with_magnitudes(self.scale * first * second, self.parts, weight)


class LoKr(_Scaled):
    """`lokr_w1` and `lokr_w2`, each either whole or as two factors `_a` and `_b`."""

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return the Kronecker product, times alpha / rank if there is a rank."""
        change = self.scale * torch.kron(self._matrix("lokr_w1"), self._matrix("lokr_w2"))
        return _with_magnitudes(change, self.parts, weight)

    def _matrix(self, name: str) -> Tensor:
        if name in self.parts:
            return self.parts[name].float().flatten(1)
        return self.parts[f"{name}_a"].float() @ self.parts[f"{name}_b"].flatten(1).float()


class GLoRA(_Scaled):
    """`a1.weight` [in, rank], `a2.weight` [rank, in], `b1.weight` [out, rank], `b2.weight` [rank, in, ...].

    Chavan et al. 2023, https://arxiv.org/abs/2306.07967: W + scale * (W A + B), with A = a1 a2 and B = b1 b2.
    """

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return alpha / rank * (W A + B)."""
        a1, a2, b1, b2 = (self.parts[f"{name}.weight"].flatten(1).float() for name in ("a1", "a2", "b1", "b2"))
        inputs = _weight(weight).reshape(b1.shape[0], a1.shape[0], -1)
        product = torch.einsum("oik,ij->ojk", inputs, a1 @ a2).flatten(1)
        return self.scale * (product + b1 @ b2)


class Oft(_Scaled):
    """`oft_blocks` [blocks, size, size] or, for BOFT, [factors, blocks, size, size]; maybe `rescale` [out, 1, ...].

    Qiu et al. 2023, https://arxiv.org/abs/2306.07280; Liu et al. 2024, https://arxiv.org/abs/2311.06243. The rows of
    the weight are rotated in blocks. Alpha limits how far: to a norm of alpha * out; 0 = no limit.
    """

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return the rotated weight minus the weight."""
        old, rotations = _weight(weight), self._rotations()
        rotated = old
        if rotations.dim() == 3:
            blocks = old.reshape(*rotations.shape[:2], -1)
            rotated = torch.einsum("knm,knc->kmc", rotations, blocks).reshape(old.shape)
        else:
            for level, rotation in enumerate(rotations):
                rotated = _butterfly(rotated, rotation, level)
        if "rescale" in self.parts:
            rotated = rotated * self.parts["rescale"].float().reshape(-1, 1)
        return rotated - old

    def unlimited(self) -> "Oft":
        """Return the same rotations without the limit, which is one of all blocks together."""
        return Oft({**self.parts, "oft_blocks": self._skew() / 2}, 0.0) if self.alpha else self

    def _skew(self) -> Tensor:
        blocks = self.parts["oft_blocks"].float()
        skew = blocks - blocks.mT
        limit = self.alpha * blocks.shape[-3] * blocks.shape[-2]
        return skew * (limit / skew.norm()) if 0 < limit < float(skew.norm()) else skew

    def _rotations(self) -> Tensor:
        """Return the orthogonal matrices (I + Q) (I - Q)^-1 of the skew-symmetric Q (Cayley)."""
        skew = self._skew()
        identity = torch.eye(skew.shape[-1])
        rotations: Tensor = torch.linalg.solve(identity - skew, identity + skew, left=False)
        return rotations


def _butterfly(matrix: Tensor, rotation: Tensor, level: int) -> Tensor:
    """Rotate blocks of rows that are taken from two halves each, which are 2^level half blocks apart."""
    columns, width = matrix.shape[1], rotation.shape[-1]
    half = 2**level * (width // 2)
    paired = matrix.reshape(-1, 2, half, columns).transpose(1, 2).reshape(-1, width, columns)
    rotated = torch.einsum("bij,bjc->bic", rotation, paired)
    return rotated.reshape(-1, half, 2, columns).transpose(1, 2).reshape(matrix.shape)


class OftV2(_Unscaled):
    """`oft_R.weight` [blocks, size * (size - 1) / 2]: elements above the diagonals of skew-symmetric Q, row by row.

    Qiu et al. 2025, https://arxiv.org/abs/2506.19847: what enters a layer is rotated in blocks, which may share one
    rotation. `oft_R.terms` are those of the Cayley-Neumann series as PEFT counts them, 0 for the exact transform. They
    are 5 by default, as in OneTrainer.
    """

    @property
    def side(self) -> int:
        """Inputs of a block."""
        return layer_shapes.side_of_triangle(self.parts["oft_R.weight"].shape[1])

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return the weight of the rotated inputs minus the weight."""
        old = _weight(weight)
        inputs = old.reshape(len(old), -1, self.side)
        rotations = self._rotations().expand(inputs.shape[1], -1, -1)
        return torch.einsum("obc,bkc->obk", inputs, rotations).flatten(1) - old

    def _rotations(self) -> Tensor:
        """Return (I - Q) (I + Q)^-1, or the first terms of I + 2Q + 2Q^2 + ..., of which the last counts once."""
        upper, identity = self.parts["oft_R.weight"].float(), torch.eye(self.side)
        skew = torch.zeros(len(upper), self.side, self.side)
        skew[:, *torch.triu_indices(self.side, self.side, 1)] = upper
        skew = skew - skew.mT
        terms = int(self.parts.get("oft_R.terms", 5))
        if not terms:
            exact: Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
            return exact
        last = max(terms - 1, 3) if terms > 2 else terms - 1
        power = rotations = identity.expand_as(skew)
        for degree in range(1, last + 1):
            power = power @ skew
            rotations = rotations + power * (1 if degree == last > 1 else 2)
        return rotations


class IA3(_Unscaled):
    """`weight`, a factor less 1 for each output, or each input if `on_input`: Liu et al. 2022, arXiv 2205.05638."""

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return the weight times the factors."""
        old, factors = _weight(weight), self.parts["weight"].float().flatten()
        if not bool(self.parts["on_input"]):
            return factors[:, None] * old
        return (old.reshape(old.shape[0], len(factors), -1) * factors[:, None]).flatten(1)


class Full(_Unscaled):
    """`diff`, the whole change of a weight, or `w_norm`, that of a norm; beside it or alone `diff_b` or `b_norm`."""

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Return the change as it is."""
        for ending in ("diff", "w_norm"):
            if ending in self.parts:
                change = self.parts[ending].float()
                return change.reshape(len(change), -1)
        return torch.zeros_like(_weight(weight))


Module = Lora | LoHa | LoKr | GLoRA | Oft | OftV2 | IA3 | Full


def bias_change(module: Module) -> Tensor | None:
    """Return the change of a layer's bias at strength 1; None if there is none."""
    for ending in ("diff_b", "b_norm"):
        if ending in module.parts:
            return module.parts[ending].float().flatten()
    return None


def size(module: Module) -> tuple[int, int]:
    """Return rows and columns [out, in * kh * kw] of the weight that a module changes; 0 if its tensors do not tell."""
    if isinstance(module, IA3) and not bool(module.parts["on_input"]):
        return module.parts["weight"].numel(), 0
    known = layer_shapes.weight_size({ending: tuple(part.shape) for ending, part in module.parts.items()})
    assert known  # read as a module, so that its tensors fit together
    return known


def fits(module: Module, weight: tuple[int, int]) -> bool:
    """Return True if a module can change a weight of this size, [out, in * kh * kw]."""
    unit = 1  # of its columns
    if isinstance(module, IA3) and bool(module.parts["on_input"]):
        unit = module.parts["weight"].numel()
    elif isinstance(module, GLoRA):
        unit = len(module.parts["a1.weight"])
    elif isinstance(module, OftV2):
        unit = module.side
    return weight[1] % unit == 0 and layer_shapes.same_size(size(module), weight)


def is_plain(module: Module) -> bool:
    """Return True for a LoRA that is nothing else: without magnitudes and biases."""
    return module.parts.keys() == {"lora_down.weight", "lora_up.weight"}


def needs_base(module: Module) -> bool:
    """Return True if a module's change depends on the base's weights."""
    return isinstance(module, GLoRA | Oft | OftV2 | IA3) or "dora_scale" in module.parts


def by_input(module: Module) -> bool:
    """Return True if a module is a DoRA with a magnitude for each input."""
    magnitude = module.parts.get("dora_scale")
    return isinstance(module, Lora) and magnitude is not None and magnitude.shape[0] != module.up.shape[0]


def kind(module: Module) -> str:
    """Return the kind of adapter that a module belongs to."""
    if isinstance(module, Oft):
        return "OFT" if module.parts["oft_blocks"].dim() == 3 else "BOFT"
    if isinstance(module, Full):
        return "norm" if {"w_norm", "b_norm"} & module.parts.keys() else "full"
    name = {Lora: "LoRA", OftV2: "OFTv2"}.get(type(module), type(module).__name__)
    if "dora_scale" in module.parts:
        return "DoRA" if name == "LoRA" else f"{name} with DoRA"
    return name


def _with_magnitudes(change: Tensor, parts: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """Return a change; of a DoRA so that each row or input of the new weight has the length of its magnitude."""
    if "dora_scale" not in parts:
        return change
    old, magnitude = _weight(weight), parts["dora_scale"].float()
    updated = old + change
    if magnitude.shape[0] == updated.shape[0]:
        by_output: Tensor = magnitude.flatten(1) * updated / updated.norm(dim=1, keepdim=True)
        return by_output - old
    columns = updated.reshape(updated.shape[0], magnitude.shape[1], -1)
    norm = torch.linalg.vector_norm(columns, dim=(0, 2), keepdim=True)
    scaled: Tensor = magnitude.reshape(1, -1, 1) * columns / norm
    return scaled.flatten(1) - old


def _weight(weight: Tensor | None) -> Tensor:
    if weight is None:
        raise ValueError("the change of this module depends on the base's weight")
    return weight.float()
