"""Names of a transformer's layers: in diffusers, with dots or underscores between the levels, and in the original code.

The original code joins some layers to one, such as `attn.qkv`. Its path here is that of diffusers, which can join them
too (`attn.to_qkv`); it has parts. Everything here is text.
"""

import re
from collections.abc import Iterator
from functools import cache

from trainer.base_models.registry import TRANSFORMERS, FamilyName
from trainer.base_models.spec import Transformer


@cache
def _diffusers() -> dict[tuple[str, str], tuple[str, str]]:
    """Return the blocks and the paths within them by the names of both with underscores."""
    return {
        (_flat(name), _flat(layer)): (name, layer)
        for transformer in TRANSFORMERS.values()
        for name, blocks in transformer.blocks.items()
        for layer in (*blocks.layers, *(part for parts in blocks.joined.values() for part in parts))
    }


def _of(family: FamilyName | None) -> list[Transformer]:
    """Return the transformer of a family; without one, all, the first last, whose layers names of several stand for."""
    return [transformer for name, transformer in reversed(TRANSFORMERS.items()) if family in (None, name)]


@cache
def _original(family: FamilyName | None = None) -> dict[tuple[str, str], tuple[str, str]]:
    """Return blocks and paths as in diffusers by the original names of both, with underscores."""
    return {
        (_flat(blocks.original), _flat(original)): (name, layer)
        for transformer in _of(family)
        for name, blocks in transformer.blocks.items()
        for layer, original in blocks.layers.items()
    }


@cache
def _outside(family: FamilyName | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """Return the paths of layers outside the blocks by their names with underscores, in diffusers and originally."""
    pairs = [pair for transformer in _of(family) for pair in transformer.outside.items()]
    return {_flat(path): path for path, _ in pairs}, {_flat(name): path for path, name in pairs}


@cache
def _in_block() -> re.Pattern[str]:
    """Return a pattern of the names of layers in blocks, with underscores: the blocks, the number and the layer."""
    known = {
        _flat(name)
        for transformer in TRANSFORMERS.values()
        for diffusers, blocks in transformer.blocks.items()
        for name in (diffusers, blocks.original)
    }
    return re.compile(rf"({'|'.join(sorted(known, key=len, reverse=True))})_(\d+)_(.+)")


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _split(name: str) -> tuple[str, str, str]:
    match = _in_block().fullmatch(_flat(name))
    return (match[1], match[2], match[3]) if match else ("", "", "")


def _split_path(path: str) -> tuple[str, str, str]:
    """Return the list of blocks that a layer may be in, the number of its block, and its path there; "" if none."""
    match = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", path)
    return (match[1], match[2], match[3]) if match else ("", "", "")


def block(path: str) -> str:
    """Return the block that a layer is in, as `transformer_blocks.0`; "" if it is outside of them."""
    name, number, _ = _split_path(path)
    return f"{name}.{number}" if any(name in transformer.blocks for transformer in TRANSFORMERS.values()) else ""


def from_diffusers(name: str) -> str:
    """Return the path of a layer by its name in diffusers, with dots or underscores; "" if there is none."""
    blocks, number, layer = _split(name)
    known, path = _diffusers().get((blocks, layer), ("", ""))
    return f"{known}.{number}.{path}" if path else _outside()[0].get(_flat(name), "")


def from_original(name: str, family: FamilyName | None = None) -> str:
    """Return the path of a layer by its name in the original code, with dots or underscores; "" if there is none.

    The family, where it is known, tells layers apart that several families name alike.
    """
    blocks, number, layer = _split(name)
    known, path = _original(family).get((blocks, layer), ("", ""))
    return f"{known}.{number}.{path}" if path else _outside(family)[1].get(_flat(name), "")


def original(path: str, family: FamilyName) -> str:
    """Return the name of a layer in the original code, with dots; "" if it is only a part of a joined one there."""
    transformer = TRANSFORMERS[family]
    name, number, layer = _split_path(path)
    if name not in transformer.blocks:
        return transformer.outside.get(path, "")
    blocks = transformer.blocks[name]
    return f"{blocks.original}.{number}.{blocks.layers[layer]}" if layer in blocks.layers else ""


def named_alike(name: str) -> dict[FamilyName, str]:
    """Return the path of a layer in a block by its original name in each family that has one of this name."""
    blocks, number, layer = _split(name)
    places = {family: _original(family).get((blocks, layer)) for family in TRANSFORMERS}
    return {family: f"{place[0]}.{number}.{place[1]}" for family, place in places.items() if place}


def parts(path: str, family: FamilyName | None = None) -> dict[str, int]:
    """Return the paths of the parts of a joined layer with their shares of its rows, in their order; {} of others."""
    name, number, layer = _split_path(path)
    for other, transformer in TRANSFORMERS.items():
        if family in (None, other) and name in transformer.blocks and layer in transformer.blocks[name].joined:
            shares = transformer.blocks[name].joined[layer]
            return {f"{name}.{number}.{part}": share for part, share in shares.items()}
    return {}


def joined(path: str, family: FamilyName) -> str:
    """Return the path of the joined layer that a layer is a part of; "" if it is of none."""
    name, number, layer = _split_path(path)
    blocks = TRANSFORMERS[family].blocks.get(name)
    whole = next((whole for whole, shares in blocks.joined.items() if layer in shares), "") if blocks else ""
    return f"{name}.{number}.{whole}" if whole else ""


def families(path: str) -> Iterator[FamilyName]:
    """Yield the families whose transformers can have a layer at a path."""
    name, _, layer = _split_path(path)
    for family, transformer in TRANSFORMERS.items():
        blocks = transformer.blocks.get(name)
        if path in transformer.outside or (blocks and (layer in blocks.layers or joined(path, family))):
            yield family
