"""The layers of a narrow base model as modules, in the trees and under the names that programs have for them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.narrow import Base
from trainer.base_models import layer_names

Changes = dict[str, Tensor]


def original(base: Base) -> dict[str, str]:
    """Names of our layers by their names in the original models' UNet."""
    names = {}
    for name in base.shapes:
        place = layer_names.read(name).place
        if place and place.component == "unet":
            attends = base.family == "sdxl" or "up_blocks.0.up" not in place.path
            names[layer_names.original(place.path, attends=attends)] = name
    return names


def of_module(base: Base, modules: dict[str, nn.Module], apply: Callable[[], None]) -> Changes:
    """Apply something to modules, by our names, and return what it changed; restore them."""
    parts = [(name, part) for name in modules for part in base.parts(name)]
    before = {(name, part): getattr(modules[name], part).detach().clone() for name, part in parts}
    try:
        apply()
        after = {(name, part): getattr(modules[name], part).detach().clone() for name, part in parts}
        return {f"{name}.{part}": after[name, part].reshape(before[name, part].shape) - before[name, part]
                for name, part in parts}  # fmt: skip
    finally:
        for name, part in parts:
            setattr(modules[name], part, nn.Parameter(before[name, part], requires_grad=False))


def tree(modules: dict[str, nn.Module], kinds: Callable[[str], str] = lambda _: "Module") -> nn.Module:
    """Put modules at their dotted paths; each level on the way gets the class name that `kinds` gives its path."""
    root = nn.Module()
    for path, module in modules.items():
        *levels, last = path.split(".")
        parent = root
        for depth, level in enumerate(levels):
            if not hasattr(parent, level):
                made = type(kinds(".".join(levels[: depth + 1])), (nn.Module,), {})()
                parent.add_module(level, made)
            parent = getattr(parent, level)
        parent.add_module(last, module)
    return root


def in_component(base: Base, component: str) -> dict[str, str]:
    """Names of our layers by their paths in a component, with the first level that published text encoders have."""
    paths = {name: base.path_of(name) for name in base.shapes}
    return {path: name for name, (own, path) in paths.items() if own == component}


def openclip(base: Base, component: str) -> tuple[nn.Module, Callable[[], None]]:
    """A text encoder as OpenCLIP has it, and a function that copies joined weights into the modules of our layers."""
    modules: dict[str, nn.Module] = {}
    joined: list[tuple[nn.MultiheadAttention, str]] = []
    for path, name in in_component(base, component).items():
        if not path.startswith("text_model.encoder."):
            continue
        layer, _, part = path.removeprefix("text_model.encoder.layers.").partition(".")
        block = f"transformer.resblocks.{layer}"
        names = {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2"}
        if part in names:
            modules[f"{block}.{names[part]}"] = base.modules[name]
        elif part == "self_attn.q_proj":
            width = base.shapes[name][0]
            attention = nn.MultiheadAttention(width, 2)
            stem = name.removesuffix("q_proj")
            for value, kind in (("weight", "weight"), ("bias", "bias")):
                rows = torch.cat([base.tensor(f"{stem}{one}_proj", kind) for one in "qkv"])
                setattr(attention, f"in_proj_{value}", nn.Parameter(rows, requires_grad=False))
                setattr(
                    attention.out_proj, value, nn.Parameter(base.tensor(f"{stem}out_proj", kind), requires_grad=False)
                )
            modules[f"{block}.attn"] = attention
            joined.append((attention, stem))

    def split() -> None:
        for attention, stem in joined:
            for part in ("weight", "bias"):
                for one, rows in zip("qkv", getattr(attention, f"in_proj_{part}").chunk(3), strict=True):
                    setattr(base.modules[f"{stem}{one}_proj"], part, nn.Parameter(rows.clone(), requires_grad=False))
                setattr(base.modules[f"{stem}out_proj"], part, nn.Parameter(getattr(attention.out_proj, part).clone(),
                                                                            requires_grad=False))  # fmt: skip

    return tree(modules), split


def components(base: Base) -> dict[str, nn.Module]:
    """Module trees of the UNet and the text encoders with diffusers' names, and the class names that count."""
    return {
        component: tree({path: base.modules[name] for path, name in in_component(base, component).items()}, class_name)
        for component in base.configs
        if component in ("unet", "text_encoder", "text_encoder_2")
    }


def class_name(path: str) -> str:
    parts = path.split(".")
    if len(parts) > 1 and parts[-1].isdigit():
        names = {"attentions": "Transformer2DModel", "resnets": "ResnetBlock2D", "downsamplers": "Downsample2D",
                 "upsamplers": "Upsample2D"}  # fmt: skip
        return names.get(parts[-2], "Module")
    return {"self_attn": "CLIPAttention", "mlp": "CLIPMLP"}.get(parts[-1], "Module")


def now(base: Base, models: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Modules by our names, as they are in models now."""
    return {name: models[component].get_submodule(path) for name in base.shapes
            for component, path in (base.path_of(name),)}  # fmt: skip


def sai_class(path: str) -> str:
    """Class names of sd-scripts' own UNet of XL."""
    parts = path.split(".")
    if len(parts) != 3 and parts[0] != "middle_block":
        return "Module"
    index = int(parts[-1]) if parts[-1].isdigit() else -1
    if parts[0] == "middle_block":
        return {0: "ResnetBlock2D", 1: "Transformer2DModel", 2: "ResnetBlock2D"}[index] if len(parts) == 2 else "Module"
    if index == 0:
        return "Downsample2D" if parts[0] == "input_blocks" and parts[1] in ("3", "6") else "ResnetBlock2D"
    return "Upsample2D" if index == 2 else "Transformer2DModel"


def of_scripts(base: Base, root: type[nn.Module] = nn.Module) -> tuple[list[nn.Module], nn.Module]:
    """Text encoders and UNet as sd-scripts has them: that of XL in its original form."""
    models = components(base)
    unet = models.pop("unet")
    if base.family == "sdxl":
        unet = tree({path: base.modules[name] for path, name in original(base).items()}, sai_class)
        unet.__class__ = root
    return list(models.values()), unet
