"""Layers that a transformer's original code joins to one, such as `attn.qkv`: take their adapters apart, or join them.

diffusers has the parts (`attn.to_q`), and so do adapters here. kohya's format has the joined layers: their rows are
those of the parts, one after the other, and a joined LoRA's matrices are the parts' in blocks, so that nothing is lost.
The blocks are of one rank, the largest; ranks of zeros fill the others, by which the parts are found again.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trainer.adapter_files import low_rank
from trainer.adapter_files.modules import IA3, Full, LoKr, Lora, Module, Oft, is_plain, size
from trainer.base_models import layer_names, transformer_names
from trainer.base_models.layer_names import Place
from trainer.base_models.registry import TRANSFORMERS, FamilyName

# Tensors whose rows are the layer's; those of the first factor of a LoKr, and blocks of OFT, stand for several.
_SLICED = {
    *("lora_up.weight", "hada_w1_a", "hada_w2_a", "b1.weight", "diff", "diff_b", "dora_scale"),
    *("lokr_w1", "lokr_w1_a", "oft_blocks", "rescale", "weight"),
}


def apart(
    place: Place, module: Module, *, originally: bool, family: FamilyName | None = None
) -> dict[Place, Module] | None:
    """Return the adapters of a joined layer's parts, of others the layer itself; None if it cannot be taken apart.

    `originally` is how the file names it: as the original code.
    """
    shares = transformer_names.parts(place.path) if place.component == "transformer" else {}
    rows, columns = size(module)
    if not rows:  # a change of what enters the layer, and so each of its parts
        return dict.fromkeys((Place(place.component, path) for path in shares or (place.path,)), module)
    if not shares and not (originally and is_swapped(place.path, rows, columns, family)):
        return {place: module}
    magnitude, count = module.parts.get("dora_scale"), sum(shares.values()) or 2  # or two halves
    if rows % count or (shares and magnitude is not None and len(magnitude) != rows):
        return None
    unit = rows // count
    if (whole := _sliceable(module, unit)) is None:
        return None
    if not shares:
        return {place: _swapped(whole)}
    parts: dict[Place, Module] = {}
    start = 0
    for number, (path, share) in enumerate(shares.items()):
        stop = start + share * unit
        part = _slice(whole, start, stop)
        if isinstance(part, Lora):
            part = _own_ranks(part, number, len(shares))
        if not isinstance(part, Lora) or part.up.any() or part.down.any():  # else it was missing
            parts[Place(place.component, path)] = part
        start = stop
    return parts


def _sliceable(module: Module, unit: int) -> Module | None:
    """Return a module that can be cut after any multiple of `unit` rows; None if there is none of the same change."""
    if isinstance(module, Oft):
        *levels, _count, side, _side = module.parts["oft_blocks"].shape
        return None if levels or unit % side else module.unlimited()
    if isinstance(module, IA3):
        return replace(module, parts={**module.parts, "weight": module.parts["weight"].flatten()})
    if not isinstance(module, LoKr):
        return module
    first = module.parts.get("lokr_w1", module.parts.get("lokr_w1_a"))
    assert first is not None
    if unit % (size(module)[0] // len(first)) == 0:  # each of its rows stands for a block of the layer's
        return module
    others = {key: part for key, part in module.parts.items() if key in ("diff_b", "dora_scale")}
    plain = LoKr({key: part for key, part in module.parts.items() if key not in others}, module.alpha)
    if "dora_scale" not in others:
        return Full({"diff": plain.delta().to(first.dtype), **others})
    lora = low_rank.factors(plain).module()
    return Lora(lora.parts | others, lora.alpha)


def _slice(module: Module, start: int, stop: int) -> Module:
    rows, parts = size(module)[0], dict(module.parts)
    for key in _SLICED & parts.keys():
        count = len(parts[key])
        parts[key] = parts[key][start * count // rows : stop * count // rows].contiguous()
    return replace(module, parts=parts)


def _swapped(module: Module) -> Module:
    """Return the adapter of a layer whose halves diffusers has in the other order, in the order of the other code."""
    parts = {key: part.roll(len(part) // 2, 0) if key in _SLICED else part for key, part in module.parts.items()}
    return replace(module, parts=parts)


def is_swapped(path: str, rows: int, columns: int, family: FamilyName | None) -> bool:
    """Return True if the halves of a layer's weight are in the other order in the original code of a family, or any."""
    names = tuple(
        layer for name, transformer in TRANSFORMERS.items() if family in (None, name) for layer in transformer.swapped
    )
    return columns in (0, rows / 2) and path.endswith(names)


def _own_ranks(part: Lora, number: int, count: int) -> Lora:
    """Return a part of a joined LoRA without the ranks of the other parts and those of zeros, if each has its own."""
    rank, remainder = divmod(part.rank, count)
    start = number * rank
    others = part.up.clone()
    others[:, start : start + rank] = 0
    if remainder or bool(others.any()):
        return part
    down, up = part.down[start : start + rank], part.up[:, start : start + rank]
    used = (down != 0).flatten(1).any(1) | (up != 0).flatten(1).any(0)
    kept = int(used.nonzero().max()) + 1 if used.any() else rank
    matrices = {"lora_down.weight": down[:kept].contiguous(), "lora_up.weight": up[:, :kept].contiguous()}
    return Lora(part.parts | matrices, part.alpha * kept / part.rank)


def can_join(modules: Mapping[str, Module], family: FamilyName | None) -> bool:
    """Return True for a transformer's LoRA; kohya's scripts join only LoRA, so that other kinds keep their names."""
    return family in TRANSFORMERS and all(map(is_plain, modules.values()))


def whole_of(name: str, family: FamilyName) -> tuple[str, int]:
    """Return the path of the joined layer that a layer is a part of, and of how many; else its own name and 1."""
    layer = layer_names.read(name)
    if layer.component == "transformer" and (whole := transformer_names.joined(layer.path, family)):
        return whole, len(transformer_names.parts(whole, family))
    return name, 1


def unjoined(name: str, family: FamilyName | None) -> str:
    """Return the name in kohya's format of a layer that is not joined, as ComfyUI reads it for its family.

    It is the original one where the original code joins none.
    """
    layer = layer_names.read(name)
    if family is None or family not in TRANSFORMERS or layer.component != "transformer":
        return name
    transformer = TRANSFORMERS[family]
    return transformer.apart + layer.path.replace(".", "_") if transformer.parts else _kohya(layer.path, family)


def as_original(modules: Mapping[str, Module], family: FamilyName) -> dict[str, Module]:
    """Return LoRA under the names that kohya's scripts have for a transformer's layers, with joined ones joined.

    The parts of a joined layer are given together.
    """
    named, groups = dict[str, Module](), dict[str, dict[str, Lora]]()
    for name, module in modules.items():
        layer = layer_names.read(name)
        if layer.component != "transformer" or not isinstance(module, Lora):
            named[name] = module
        elif whole := transformer_names.joined(layer.path, family):
            groups.setdefault(whole, {})[layer.path] = module
        else:
            is_other = is_swapped(layer.path, *size(module), family)
            named[_kohya(layer.path, family)] = _swapped(module) if is_other else module
    for whole, parts in groups.items():
        named[_kohya(whole, family)] = _joined(transformer_names.parts(whole, family), parts)
    return named


def _kohya(path: str, family: FamilyName) -> str:
    return "lora_unet_" + transformer_names.original(path, family).replace(".", "_")


def _joined(shares: Mapping[str, int], parts: Mapping[str, Lora]) -> Lora:
    """Return the LoRA of a joined layer, block by block; parts that are missing have blocks of zeros."""
    some_path, some = next(iter(parts.items()))
    unit = some.up.shape[0] // shares[some_path]
    rank = max(module.rank for module in parts.values())
    scales = {module.scale for module in parts.values()}
    ups, downs = list[Tensor](), list[Tensor]()
    for path, share in shares.items():
        ups.append(torch.zeros(share * unit, rank))
        downs.append(torch.zeros(rank, some.down.shape[1]))
        if module := parts.get(path):
            ups[-1][:, : module.rank] = module.up.float() * (1 if len(scales) == 1 else module.scale)
            downs[-1][: module.rank] = module.down
    up: Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
    scale = next(iter(scales)) if len(scales) == 1 else 1.0
    return Lora({"lora_down.weight": torch.cat(downs), "lora_up.weight": up}, scale * rank * len(shares))
