"""Make adapter files of others, with exact mathematics: merge, resize, bake into a base, extract from two models.

Each works on a module's change of a weight, not on its file format, so that all kinds can be mixed.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.adapter_files import low_rank
from trainer.adapter_files.base_weights import Change, Checkpoint, Weight, rewrite
from trainer.adapter_files.low_rank import Cut, Pair
from trainer.adapter_files.modules import Module, bias_change, fits, size
from trainer.adapter_files.reader import AdapterFile, without_t5
from trainer.adapter_files.writer import kernel_of, place_of
from trainer.base_models import layer_names, layer_shapes
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.errors import UserError
from trainer.i18n import _

_LOST = 1e-7  # a smaller share than this is rounding


@dataclass(frozen=True)
class Made:
    """A new adapter: its modules, and how far its effect is from the exact one, in the Frobenius norm.

    `error` is relative to the whole effect; `worst` is that of the layer for which it is largest.
    """

    modules: Mapping[str, Module]
    error: float = 0.0
    worst: float = 0.0
    notes: tuple[str, ...] = ()


class _Making:
    """A new adapter as its layers are made: its modules, and the squared norms of all changes and of what is lost."""

    def __init__(self, into: MutableMapping[str, Module] | None) -> None:
        self.modules: MutableMapping[str, Module] = {} if into is None else into
        self.whole = self.lost = self.worst = 0.0  # the last is that of a layer, as a share of its own

    def cut(self, name: str, cut: Cut) -> None:
        """Add the module of an approximation."""
        self.whole, self.lost = self.whole + cut.whole, self.lost + cut.lost
        if cut.whole:
            self.worst = max(self.worst, cut.lost / cut.whole)
        self.modules[name] = cut.pair.module()

    def made(self, notes: tuple[str, ...] = ()) -> Made:
        """Return the new adapter with its errors."""
        error = (self.lost / (self.whole or 1.0)) ** 0.5
        if error <= _LOST:
            return Made(self.modules, notes=notes)
        return Made(self.modules, error, self.worst**0.5, notes)


def same_family(files: Mapping[str, AdapterFile]) -> FamilyName | None:
    """Return the family of all files, which are given by their names.

    Raises:
        UserError: they are for different families, or for models of different sizes.
    """
    families = {name: file.family for name, file in files.items() if file.family}
    first = next(iter(families), "")
    for name, family in families.items():
        if family != families[first]:
            raise UserError(
                "{first} is for {family}, {name} for {other}.",
                "Only adapters of one family can be combined.",
                first=first,
                family=FAMILIES[families[first]].title,
                name=name,
                other=FAMILIES[family].title,
            )
    sizes: dict[str, tuple[str, tuple[int, int]]] = {}
    for name, file in files.items():
        for module_name, module in file.modules.items():
            other, known = sizes.setdefault(module_name, (name, size(module)))
            if not layer_shapes.same_size(known, size(module)):
                raise UserError(
                    "{other} and {name} are for base models of different sizes (in {module_name}).",
                    "Only adapters of one base model can be combined.",
                    other=other,
                    name=name,
                    module_name=module_name,
                )
    return families.get(first)


def merge(
    files: Sequence[tuple[str, AdapterFile, float]], rank: int = 0, into: MutableMapping[str, Module] | None = None
) -> Made:
    """Merge several adapters into one LoRA, each (name, file, strength) at its strength.

    The factors are put side by side, which is exact: ranks add up. With `rank`, each layer is then cut to it. The
    modules are put `into` a mapping, such as a `writer.Draft`, one at a time.

    Raises:
        UserError: they do not belong together, or a LoRA cannot express one.
    """
    family, making = same_family({name: file for name, file, _ in files}), _Making(into)
    for name in sorted({name for _unused, file, _strength in files for name in file.modules}):
        pairs = [
            (_factors(name, file.modules[name], family), strength)
            for _, file, strength in files
            if name in file.modules and strength
        ]
        if pairs and rank:
            making.cut(name, low_rank.cut(low_rank.add(pairs), rank))
        elif pairs:
            making.modules[name] = low_rank.add(pairs).module()
    if not making.modules:
        raise UserError("There is nothing to merge: all strengths are 0.", "Change at least one strength.")
    return making.made()


def _factors(name: str, module: Module, family: FamilyName | None) -> Pair:
    flat = "lora_up.weight" not in module.parts
    return low_rank.factors(module, kernel_of(name, module, family) if flat else None)


def resize(
    file: AdapterFile, rank: int = 0, energy: float = 1.0, into: MutableMapping[str, Module] | None = None
) -> Made:
    """Return a LoRA of lower rank with nearly the effect of an adapter: each layer's best approximation.

    Args:
        file: of kinds that a LoRA can express.
        rank: the most a layer may have; 0 = no limit.
        energy: share of the squared effect that each layer keeps at least.
        into: takes the modules, one at a time.

    Raises:
        UserError: a LoRA cannot express it, or a limit is out of range.
    """
    if not 0 < energy <= 1 or rank < 0:
        raise UserError("The energy share must be above 0 and at most 1, and the rank positive.", "Correct it.")
    making = _Making(into)
    for name, module in file.modules.items():
        making.cut(name, low_rank.cut(_factors(name, module, file.family), rank, energy))
    return making.made()


def bake(base: Checkpoint, files: Sequence[tuple[str, AdapterFile, float]], out: Path) -> tuple[int, tuple[str, ...]]:
    """Write a base model with adapters in its weights, each (name, file, strength).

    Returns:
        How many layers changed, and a sentence about each file with layers of T5 that the base model lacks.

    Raises:
        UserError: an adapter is for another base model, or something exists at `out`.
    """
    changes, notes = dict[str, list[tuple[Module, float]]](), tuple[str, ...]()
    has_t5 = any(name.startswith(layer_names.T5_PREFIX) for name in base.weights)
    for title, file, strength in files:
        if file.family and file.family != base.family:
            raise UserError(
                "{title} is for {family}, {base} is {other}.",
                "Choose the base model that the adapter was trained on.",
                title=title,
                family=FAMILIES[file.family].title,
                base=base.path.name,
                other=FAMILIES[base.family].title,
            )
        if not has_t5:
            file, sentence = without_t5(file, title)
            notes += sentence
        for name, module in file.modules.items():
            _check_fits(title, name, module, base)
            if strength:
                changes.setdefault(name, []).append((module, strength))
    rewrite(base, [change for name, modules in changes.items() for change in _changes(base, name, modules)], out)
    return len(changes), notes


def _check_fits(title: str, name: str, module: Module, base: Checkpoint) -> None:
    remedy = _("Choose the base model that the adapter was trained on.")
    weight, values = _weight_of(base, name), {"base": base.path.name, "name": name, "title": title}
    if weight is None:
        raise UserError("{base} has no layer {name}, which {title} changes.", remedy, **values)
    if bias_change(module) is not None and f"{name}.bias" not in base.vectors:
        raise UserError(
            "The layer {name} has no bias in {base}, and {title} adds one.",
            "Keep the adapter as a file of its own.",
            **values,
        )
    rows, *others = base.shape(weight)
    if not fits(module, (rows, int(torch.Size(others).numel()))):
        raise UserError("The layer {name} has a different size in {base} than in {title}.", remedy, **values)


def _weight_of(base: Checkpoint, name: str) -> Weight | None:
    return base.weights.get(name) or base.vectors.get(f"{name}.weight")


def _changes(base: Checkpoint, name: str, modules: list[tuple[Module, float]]) -> Iterator[tuple[Weight, Change]]:
    """Yield the tensors of a layer that modules change, with what to make of them."""

    def change_weight(weight: Tensor) -> Tensor:
        # Each module gets the base's own weight, on which some kinds depend.
        flat = weight.reshape(len(weight), -1)
        return flat + sum(strength * module.delta(flat) for module, strength in modules)

    weight = _weight_of(base, name)
    assert weight  # checked for each module
    yield weight, change_weight
    biases = [strength * bias for module, strength in modules if (bias := bias_change(module)) is not None]
    if biases:
        yield base.vectors[f"{name}.bias"], lambda bias: bias + sum(biases)


def difference(
    tuned: Checkpoint,
    base: Checkpoint,
    rank: int,
    energy: float = 1.0,
    into: MutableMapping[str, Module] | None = None,
) -> Made:
    """Extract a LoRA of the difference between a tuned model and its base: that of each layer, cut to a rank.

    The modules are put `into` a mapping, one at a time.

    Raises:
        UserError: the models are of different families or sizes, or do not differ.
    """
    names = {"tuned": tuned.path.name, "base": base.path.name}
    if tuned.family != base.family:
        raise UserError(
            "{tuned} is {family}, {base} is {other}.",
            "Only models of one family can be compared.",
            **names,
            family=FAMILIES[tuned.family].title,
            other=FAMILIES[base.family].title,
        )
    making = _Making(into)
    for name in sorted(tuned.weights.keys() & base.weights.keys()):
        if place_of(name).block == "outside" or place_of(name).path == layer_names.TEXT_PROJECTION:
            continue
        new, old = tuned.read(name), base.read(name)
        if new.shape != old.shape:
            raise UserError(
                "The layer {name} has different sizes in {tuned} and {base}.",
                "Only models of one size can be compared.",
                name=name,
                **names,
            )
        difference = new.double() - old.double()
        if not bool(difference.any()):
            continue
        making.cut(name, low_rank.cut_matrix(difference.flatten(1), tuple(difference.shape[1:]), rank, energy))
    if not making.modules:
        raise UserError(
            "{tuned} and {base} do not differ in any layer that a LoRA can change.",
            "Choose a tuned model and the base it came from.",
            **names,
        )
    return making.made(_left_out(tuned, base, making.whole))


def _left_out(tuned: Checkpoint, base: Checkpoint, whole: float) -> tuple[str, ...]:
    """Return a note on how much else differs, if the models have the same format, so that it can be measured."""
    if tuned.path.is_dir() != base.path.is_dir():
        return ()
    originals = {(_relative(base, file), key): (file, key) for file, key in base.others()}
    rest = 0.0
    for file, key in tuned.others():
        if original := originals.get((_relative(tuned, file), key)):
            new, old = tuned.read_tensor(file, key), base.read_tensor(*original)
            if new.shape == old.shape:
                rest += float((new - old).double().square().sum())
    share = rest / (rest + whole)
    if share <= 1e-6:
        return ()
    note = _(
        "{share:.2%} of the squared difference is in norms, biases and embeddings, which a LoRA leaves out.",
        share=share,
    )
    return (note,)


def _relative(checkpoint: Checkpoint, file: Path) -> Path:
    return file.relative_to(checkpoint.path) if checkpoint.path.is_dir() else Path()
