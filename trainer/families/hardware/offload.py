"""Offloading: frozen weights of blocks wait in main memory, and are copied to the device just ahead of their use.

They never change, so that they are copied in one direction only. While a block computes, the weights of the next one
are copied on a stream of their own: in the order of the first pass, and backward in the reverse order. At most two
blocks have their weights on the device. What autograd keeps of a block would keep its weights there as well; that is
why, in training, blocks whose weights wait are computed twice.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trainer import devices
from trainer.devices import Untyped
from trainer.families.hardware import quantize

ALIGNED = 512  # bytes, to a multiple of which a weight is placed in a slot


@dataclass(frozen=True)
class _Weight:
    """A frozen weight in main memory, and its place in a slot."""

    owner: nn.Module
    name: str
    waiting: Tensor
    start: int  # byte

    def send_home(self) -> None:
        quantize.set_weight(self.owner, self.name, self.waiting)

    def copy_to(self, slot: Tensor) -> None:
        there = slot[self.start : self.start + self.waiting.nbytes].view(self.waiting.dtype).view(self.waiting.shape)
        there.copy_(self.waiting, non_blocking=True)
        quantize.set_weight(self.owner, self.name, there)


@dataclass
class _Slot:
    """Memory of the device for the weights of one block."""

    memory: Tensor
    block: nn.Module | None = None
    filled: Any = None  # event of the stream that copies


@dataclass(eq=False)
class Offloaded:
    """Blocks of a model whose frozen weights wait in main memory; the rest of the model is on its device."""

    device: torch.device
    weights: dict[nn.Module, list[_Weight]]
    size: int  # bytes of the largest block
    stream: Any  # on which weights are copied; None: on the one that computes
    order: list[nn.Module] = field(default_factory=list)  # of the blocks, as they were first used
    slots: list[_Slot] = field(default_factory=list)  # two, from the first use on
    last: int = -1  # number of the block that was used last

    def forward(self, block: nn.Module) -> Callable[..., Any]:
        """Return the forward function of a block, which has its weights brought first."""
        compute = block.forward

        def bring_and_compute(*arguments: Untyped, **options: Untyped) -> Untyped:
            self._use(block)
            return compute(*arguments, **options)

        return bring_and_compute

    def send_home(self) -> None:
        """Have all weights in main memory, and no slot on the device."""
        for slot in self.slots:
            self._empty(slot)
            self._await(slot)  # before its memory is given to others
        self.slots.clear()

    def _use(self, block: nn.Module) -> None:
        """Bring the weights of a block, and begin to bring those of the next one."""
        if not self.slots:
            self.slots = [_Slot(torch.empty(self.size, dtype=torch.uint8, device=self.device)) for _ in range(2)]
        if block not in self.order:
            self.order.append(block)
        slot = self._bring(block, after=self.order[self.last] if self.last >= 0 else None)
        self._await(slot)
        number = self.order.index(block)
        if following := self._following(number):
            self._bring(following, after=block)
        self.last = number

    def _following(self, number: int) -> nn.Module | None:
        """Return the block that is probably used after one, by the direction since the last; None if it is there."""
        final = len(self.order) - 1
        if not torch.is_grad_enabled():
            return self.order[(number + 1) % len(self.order)]
        backward = number < self.last or number == self.last == final
        following = number - 1 if backward else number + 1
        return self.order[following] if 0 <= following <= final else None

    def _bring(self, block: nn.Module, after: nn.Module | None) -> _Slot:
        """Copy the weights of a block to the device unless they are there; they do not replace those it comes after.

        Returns:
            Their slot.
        """
        for present in self.slots:
            if present.block is block:
                return present
        slot = next(slot for slot in self.slots if after is None or slot.block is not after)
        self._empty(slot)
        slot.block = block
        with devices.on_stream(self.stream):
            if self.stream is not None:  # whatever has been computed so far may have used this slot
                self.stream.wait_event(devices.compute_stream(self.device).record_event())
            for weight in self.weights[block]:
                weight.copy_to(slot.memory)
            slot.filled = self.stream.record_event() if self.stream is not None else None
        return slot

    def _await(self, slot: _Slot) -> None:
        """Have what is computed from now on wait until a slot is filled."""
        if slot.filled is not None:
            devices.compute_stream(self.device).wait_event(slot.filled)

    def _empty(self, slot: _Slot) -> None:
        for weight in self.weights.get(slot.block, ()) if slot.block else ():
            weight.send_home()
        slot.block = None


_OFFLOADED: "WeakKeyDictionary[nn.Module, Offloaded]" = WeakKeyDictionary()


def items(model: nn.Module, lists: Collection[str]) -> dict[str, nn.Module]:
    """Return the items of all lists of a model with these names, such as its blocks, by their paths.

    A name may begin with that of the part that has the list.
    """

    def is_in_one(path: str) -> bool:
        owner, _, number = path.rpartition(".")
        return number.isdigit() and f".{owner}".endswith(tuple(f".{name}" for name in lists))

    return {path: module for path, module in model.named_modules() if is_in_one(path)}


def offload(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device, *, pinned: bool = True) -> None:
    """Have the frozen weights of blocks wait in main memory, those of no others, and the rest of a model on its device.

    Pinned memory is copied from in less time, but no other program can have it while the model is idle.

    Raises:
        RuntimeError: the device has too little memory for the rest.
    """
    if before := _OFFLOADED.pop(model, None):
        before.send_home()
        clear(before.weights)
    if not blocks:
        model.to(device)
        return
    weights, size = dict[nn.Module, list[_Weight]](), 0
    keep: Callable[[Tensor], Tensor] = devices.Pinned(device)
    if not pinned:
        keep = Tensor.cpu
    for block in blocks:
        weights[block], start = [], 0
        for owner, name, weight in _frozen(block):
            weights[block].append(_Weight(owner, name, keep(weight), start))
            start += -(-weight.nbytes // ALIGNED) * ALIGNED
            quantize.move_scales(owner, device)
            weights[block][-1].send_home()
        size = max(size, start)
    offloaded = _OFFLOADED[model] = Offloaded(device, weights, size, devices.copy_stream(device))
    for block in blocks:
        block.forward = offloaded.forward(block)
    move(model, device)


def clear(blocks: Iterable[nn.Module]) -> None:
    """Give blocks the forward function of their class back."""
    for block in blocks:
        vars(block).pop("forward", None)


def is_offloaded(model: nn.Module) -> bool:
    """Return True if weights of a model wait in main memory."""
    return model in _OFFLOADED


def move(model: nn.Module, device: torch.device | str) -> None:
    """Move a model to a device, or to main memory; weights that wait stay there."""
    if (offloaded := _OFFLOADED.get(model)) is None:
        model.to(device)
        return
    offloaded.send_home()
    owners = {weight.owner for weights in offloaded.weights.values() for weight in weights}
    for module in model.modules():
        if module not in owners:
            module._apply(lambda tensor: tensor.to(device), recurse=False)  # type: ignore[no-untyped-call]


def gather(model: nn.Module) -> None:
    """Have the weights of a model that wait all in main memory, before they are changed or read there."""
    if offloaded := _OFFLOADED.get(model):
        offloaded.send_home()


def is_too_large(model: nn.Module, device: torch.device, beside: int = 0) -> bool:
    """Return True if a device has too little memory for the weights of a model that are not there, and bytes beside."""
    if not devices.has_own_memory(device):
        return False
    missing = sum(weight.nbytes for weight in model.parameters() if weight.device.type != device.type)
    return missing + beside > devices.unused_memory(device)


def _frozen(block: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield the frozen weights of a block, each with its owner and its name there."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad:
                yield module, name, parameter.detach()
