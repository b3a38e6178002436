"""Exact arithmetic of low-rank changes: factors of any kind of module, their sum, and their best approximation.

A change of a weight [out, in * kh * kw] is kept as two factors, up [out, rank] and down [rank, in * kh * kw], with all
scales in them. Everything is computed in double precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.adapter_files.modules import Full, LoHa, LoKr, Lora, Module, bias_change, kind, needs_base
from trainer.errors import UserError


@dataclass(frozen=True)
class Pair:
    """A change, up @ down; `kernel` is the shape of the weight behind its rows: (in,) or (in, kh, kw)."""

    up: Tensor
    down: Tensor
    kernel: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Columns of up."""
        return self.up.shape[1]

    def module(self, alpha: float | None = None, dtype: torch.dtype = torch.float32) -> Lora:
        """Return a LoRA module that makes this change; its alpha is the rank unless another one is given.

        The singular values are shared evenly between the factors, which keeps both in the range of fp16.
        """
        alpha = float(self.rank) if alpha is None else alpha
        root = (self.rank / alpha) ** 0.5
        ones = (1,) * (len(self.kernel) - 1)
        down = (root * self.down).reshape(self.rank, *self.kernel)
        up = (root * self.up).reshape(*self.up.shape, *ones)
        parts = {"lora_down.weight": down.to(dtype).contiguous(), "lora_up.weight": up.to(dtype).contiguous()}
        return Lora(parts, alpha)


@dataclass(frozen=True)
class Cut:
    """Energy of an approximation: the squared norm of the original, and of what was left out."""

    pair: Pair
    whole: float
    lost: float


def factors(module: Module, kernel: Sequence[int] | None = None) -> Pair:
    """Factor the change of a module at strength 1, exactly.

    The Hadamard product of two matrices of rank r has rank r squared at most: its factors are the products of all pairs
    of columns and rows (Hyeon-Woo et al. 2022, proposition 1). A Kronecker product of W1 and B A is that of W1 and B
    times that of the identity and A.

    Args:
        module: of a file.
        kernel: the weight's shape behind its rows, where the module's tensors do not show it.

    Raises:
        UserError: the change depends on the base's weight, or is not that of a weight alone.
    """
    if needs_base(module):
        raise UserError(
            "The change that {kind} makes depends on the base's weights: it is not a low-rank change by itself.",
            "Bake it into its base model instead.",
            kind=kind(module),
        )
    if kind(module) == "norm" or bias_change(module) is not None:
        raise UserError(
            "It changes norms or biases, which a LoRA cannot express.", "Bake it into its base model instead."
        )
    parts = {ending: part.double() for ending, part in module.parts.items()}
    if isinstance(module, Lora):
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        return Pair(module.scale * up.flatten(1), down.flatten(1), tuple(kernel or down.shape[1:]))
    if isinstance(module, LoHa):
        up = torch.einsum("or,os->ors", parts["hada_w1_a"], parts["hada_w2_a"]).flatten(1)
        down = torch.einsum("ri,si->rsi", parts["hada_w1_b"], parts["hada_w2_b"]).flatten(0, 1)
        return Pair(module.scale * up, down, tuple(kernel or down.shape[1:]))
    if isinstance(module, LoKr):
        return _kronecker(module, parts, kernel)
    if isinstance(module, Full):
        up, down = _split(parts["diff"].flatten(1))
        return Pair(up, down, tuple(kernel or parts["diff"].shape[1:]))
    raise TypeError(type(module).__name__)


def _kronecker(module: LoKr, parts: dict[str, Tensor], kernel: Sequence[int] | None) -> Pair:
    left = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        kernel = kernel or (left.shape[1] * parts["lokr_w2"].shape[1], *parts["lokr_w2"].shape[2:])
        first, second = _split(parts["lokr_w2"].flatten(1))
    else:
        first, second = parts["lokr_w2_a"], parts["lokr_w2_b"].flatten(1)
        kernel = kernel or (left.shape[1] * second.shape[1],)
    up, down = torch.kron(left, first), torch.kron(torch.eye(left.shape[1], dtype=left.dtype), second)
    return Pair(module.scale * up, down, tuple(kernel))


def _split(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Split a whole matrix into two factors, of no more rank than its shorter side."""
    rows, columns = matrix.shape
    if rows <= columns:
        return torch.eye(rows, dtype=matrix.dtype), matrix
    return matrix, torch.eye(columns, dtype=matrix.dtype)


def add(pairs: Sequence[tuple[Pair, float]]) -> Pair:
    """Add changes, each at its strength: their factors side by side; the ranks add up."""
    up = torch.cat([strength * pair.up for pair, strength in pairs], dim=1)
    return Pair(up, torch.cat([pair.down for pair, _ in pairs]), pairs[0][0].kernel)


def cut(pair: Pair, rank: int = 0, energy: float = 1.0) -> Cut:
    """Return the best approximation of a change in the Frobenius norm (Eckart & Young 1936), by its singular values.

    They are those of a small core, after both factors are orthogonalized, so that the weight's size never matters.

    Args:
        pair: the change.
        rank: the most that may be left; 0 = no limit.
        energy: share of the sum of squared singular values that is to be left at least.
    """
    left, upper = torch.linalg.qr(pair.up)
    right, lower = torch.linalg.qr(pair.down.T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return _keep(left @ u, values, v @ right.T, pair.kernel, _count(values, rank, energy))


def cut_matrix(change: Tensor, kernel: Sequence[int], rank: int, energy: float = 1.0) -> Cut:
    """Approximate a change that is a whole matrix [out, in * kh * kw] in the same way."""
    u, values, v = torch.linalg.svd(change.double(), full_matrices=False)
    return _keep(u, values, v, tuple(kernel), _count(values, rank, energy))


def _count(values: Tensor, rank: int, energy: float) -> int:
    """Return how many singular values to keep: none that is mere rounding, and always at least one."""
    count = int((values > values[0] * 1e-12).sum()) if len(values) else 0
    if energy < 1:
        shares = values.square().cumsum(0) / values.square().sum().clamp_min(1e-300)
        count = min(count, int((shares < energy).sum()) + 1)
    return max(1, min(count, rank or count))


def _keep(u: Tensor, values: Tensor, v: Tensor, kernel: tuple[int, ...], count: int) -> Cut:
    roots = values[:count].sqrt()
    pair = Pair(u[:, :count] * roots, roots[:, None] * v[:count], kernel)
    squares = values.square()
    return Cut(pair, float(squares.sum()), float(squares[count:].sum()))
