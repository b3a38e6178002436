"""Names of layers in adapter files: kohya's, with the blocks of diffusers or of the original models, and PEFT's.

A layer has one `Place`: its component and its path as in the diffusers library, without the text encoders' first level
(`text_model`), which some versions of transformers leave out. Everything here is text; no file is read.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainer.base_models.detect import FamilyName

Component = Literal["unet", "text_encoder", "text_encoder_2"]
Naming = Literal["diffusers", "original", "dotted"]
Shape = tuple[int, ...]
PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
TEXT_PREFIXES: dict[FamilyName, dict[Component, str]] = {
    "sd15": {"text_encoder": "lora_te_"},
    "sd21": {"text_encoder": "lora_te_"},
    "sdxl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
}
MAX_NAME = 300
PER_BLOCK = 3  # places that a block of the UNet has in the original numbering, in all three families
_COMPONENTS: dict[str, Component] = {
    "lora_unet_": "unet", "lycoris_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}  # fmt: skip
# Parts of a residual block under their original names.
_RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
# Layers outside the blocks, under theirs.
_OUTSIDE = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_RESIDUAL_BACK = {original: name for name, original in _RESIDUAL.items()}
_OUTSIDE_BACK = {original: name for name, original in _OUTSIDE.items()}
_WORD = re.compile(
    r"(down_blocks|up_blocks|mid_block|input_blocks|middle_block|output_blocks|transformer_blocks|to_[qkv]|to_out"
    r"|proj_in|proj_out|conv_shortcut|time_emb_proj|conv_in|conv_out|time_embedding|add_embedding|linear_[12]"
    r"|in_layers|out_layers|emb_layers|skip_connection|time_embed|label_emb|text_model|self_attn|[qkv]_proj|out_proj"
    r"|[a-z]+\d?|\d+)(?:_|$)"
)
_UNET_PATH = re.compile(
    r"(?:down_blocks\.\d+|up_blocks\.\d+|mid_block)\.(?:attentions\.\d+\.(?:proj_in|proj_out|transformer_blocks\.\d+\."
    r"(?:attn[12]\.(?:to_[qkv]|to_out\.0)|ff\.net\.(?:0\.proj|2)))|resnets\.\d+\.(?:conv1|conv2|conv_shortcut"
    r"|time_emb_proj)|(?:down|up)samplers\.0\.conv)|conv_in|conv_out|(?:time|add)_embedding\.linear_[12]"
)
_TEXT_PATH = re.compile(r"encoder\.layers\.\d+\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])")
# Other programs' words for the endings of keys; what is not here is kohya's or LyCORIS' own.
_ENDINGS = {
    ".lora_A.weight": "lora_down.weight", ".lora_B.weight": "lora_up.weight",
    ".lora_A.default.weight": "lora_down.weight", ".lora_B.default.weight": "lora_up.weight",
    ".lora.down.weight": "lora_down.weight", ".lora.up.weight": "lora_up.weight",
    "_lora.down.weight": "lora_down.weight", "_lora.up.weight": "lora_up.weight",
    ".lora_linear_layer.down.weight": "lora_down.weight", ".lora_linear_layer.up.weight": "lora_up.weight",
    ".lora_magnitude_vector.weight": "dora_scale", ".lora_magnitude_vector.default.weight": "dora_scale",
    ".lora_magnitude_vector": "dora_scale",
}  # fmt: skip
OWN_ENDINGS = (
    "alpha", "dora_scale", "lora_down.weight", "lora_up.weight", "lora_mid.weight",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A layer: its component and its path there."""

    component: Component
    path: str

    @property
    def block(self) -> str:
        """The block that it is in (`down_blocks.1`, `mid_block`), or its component outside of the UNet's blocks."""
        if self.component != "unet":
            return self.component
        found = re.match(r"(?:down|up)_blocks\.\d+|mid_block", self.path)
        return found[0] if found else "outside"


@dataclass(frozen=True)
class Module:
    """The name of a layer as a file has it: its place, None if there is none of this name, and how it is named."""

    name: str
    place: Place | None
    naming: Naming
    prefix: str
    text_model: bool = True  # whether a text encoder's first level is in the name


def split(key: str) -> tuple[str, str]:
    """The layer's name as the file has it, and the ending in kohya's words; the ending is "" if it is unknown."""
    for written, ending in _ENDINGS.items():
        if key.endswith(written):
            return key.removesuffix(written), ending
    for ending in OWN_ENDINGS:
        if key.endswith(f".{ending}"):
            return key.removesuffix(f".{ending}"), ending
    return key, ""


def read(name: str) -> Module:
    """Return the layer that a name in a file stands for; a very long name, slow to parse, stands for none."""
    if len(name) > MAX_NAME:
        return Module(name, None, "diffusers", "")
    prefix = next((one for one in _COMPONENTS if name.startswith(one)), "")
    if not prefix:
        return _read_dotted(name)
    component, inner = _COMPONENTS[prefix], name.removeprefix(prefix)
    path = dotted(inner)
    naming: Naming = "diffusers"
    if component == "unet" and re.match(r"(input|output)_blocks|middle_block|out\.|time_embed\.|label_emb", path):
        path, naming = from_original(path), "original"
    return _module(name, component, path, naming, prefix)


def _read_dotted(name: str) -> Module:
    path, component, prefix = name.removeprefix("base_model.model."), "unet", ""
    for one in ("text_encoder_2", "text_encoder", "unet"):
        if path.startswith(f"{one}."):
            path, component, prefix = path.removeprefix(f"{one}."), one, f"{one}."
            break
    path = path.removeprefix("base_model.model.").replace(".processor.", ".")
    path = f"{path}.0" if path.endswith(".to_out") else path
    return _module(name, component, path, "dotted", prefix)  # type: ignore[arg-type] # one of the three


def _module(name: str, component: Component, path: str, naming: Naming, prefix: str) -> Module:
    if component == "unet":
        return Module(name, Place(component, path) if _UNET_PATH.fullmatch(path) else None, naming, prefix)
    inner = path.removeprefix("text_model.")
    place = Place(component, inner) if _TEXT_PATH.fullmatch(inner) else None
    return Module(name, place, naming, prefix, path.startswith("text_model."))


def dotted(name: str) -> str:
    """A name with dots between the levels of its path; "" if it has words that no layer has."""
    words = _WORD.findall(name)
    return ".".join(words) if "_".join(words) == name else ""


def kohya(place: Place, family: FamilyName) -> str:
    """The name that all programs read: with the original blocks for XL, with those of diffusers for the others."""
    if place.component == "unet":
        path = original(place.path) if family == "sdxl" else place.path
        return "lora_unet_" + path.replace(".", "_")
    prefix = TEXT_PREFIXES[family].get(place.component, "lora_te2_")
    return f"{prefix}text_model_" + place.path.replace(".", "_")


def peft(place: Place) -> str:
    """The name in PEFT's form, with the text encoders' first level as the published models have it."""
    return f"{place.component}.{'' if place.component == 'unet' else 'text_model.'}{place.path}"


def original(path: str, per_block: int = PER_BLOCK, *, attends: bool = True) -> str:
    """The path of a UNet's layer in the original models, which number the blocks through.

    Args:
        path: the path in diffusers.
        per_block: places that a block has: its residual blocks on the way down, and one.
        attends: whether the block on the way up that the layer is in has attention, which an upsampler follows.
    """
    kind, _, rest = path.partition("_blocks.")
    if kind in ("down", "up"):
        block, part, layer, inner = rest.split(".", 3)
        sampler = part in ("downsamplers", "upsamplers")
        place = int(block) * per_block + (per_block - 1 if sampler else int(layer)) + (kind == "down")
        if part == "upsamplers":
            return f"output_blocks.{place}.{2 if attends else 1}.conv"
        where = "input_blocks" if kind == "down" else "output_blocks"
        return f"{where}.{place}." + ("0.op" if sampler else _inner(part, inner))
    if path.startswith("mid_block."):
        _, part, layer, inner = path.split(".", 3)
        place = 1 if part == "attentions" else 2 * int(layer)
        return f"middle_block.{place}.{_inner(part, inner).partition('.')[2]}"
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    raise RuntimeError(f"{path} has no name in adapter files")


def _inner(part: str, inner: str) -> str:
    """Return the original name of a layer within a block, where the residual block is first, attention second."""
    return f"0.{_RESIDUAL[inner]}" if part == "resnets" else f"1.{inner}"


def from_original(path: str, per_block: int = PER_BLOCK) -> str:
    """The path in diffusers of a UNet's layer by its path in the original models; "" if there is none."""
    if path in _OUTSIDE_BACK:
        return _OUTSIDE_BACK[path]
    found = re.fullmatch(r"(input|middle|output)_blocks?\.(\d+)\.(.+)", path)
    if not found:
        return ""
    where, place, inner = found[1], int(found[2]), found[3]
    if where == "middle":
        return _mid(place, inner)
    block, layer = divmod(place - (where == "input"), per_block)
    side = f"{'down' if where == 'input' else 'up'}_blocks.{block}"
    if inner == "0.op":
        return f"{side}.downsamplers.0.conv"
    if where == "output" and inner in ("1.conv", "2.conv"):
        return f"{side}.upsamplers.0.conv"
    number, _, rest = inner.partition(".")
    if number == "0":
        return f"{side}.resnets.{layer}.{_RESIDUAL_BACK[rest]}" if rest in _RESIDUAL_BACK else ""
    return f"{side}.attentions.{layer}.{rest}" if number == "1" else ""


def _mid(place: int, inner: str) -> str:
    if place == 1:
        return f"mid_block.attentions.0.{inner}"
    return f"mid_block.resnets.{place // 2}.{_RESIDUAL_BACK[inner]}" if inner in _RESIDUAL_BACK else ""


def weight_size(shapes: Mapping[str, Shape]) -> tuple[int, int] | None:
    """Rows and columns [out, in * kh * kw] of the weight that a module changes, by the shapes of its parts.

    None if the parts do not fit together or one is missing.
    """
    try:
        if "lora_down.weight" in shapes:
            return _lora_size(shapes)
        if "hada_w1_a" in shapes:
            sizes = {_hada_size(shapes, one) for one in ("1", "2")}
            return sizes.pop() if len(sizes) == 1 else None
        one, two = _lokr_size(shapes, "1"), _lokr_size(shapes, "2")
    except (KeyError, ValueError, IndexError):
        return None
    return (one[0] * two[0], one[1] * two[1]) if one and two else None


def _lora_size(shapes: Mapping[str, Shape]) -> tuple[int, int] | None:
    down, up, mid = shapes["lora_down.weight"], shapes["lora_up.weight"], shapes.get("lora_mid.weight")
    if math.prod(up[2:]) != 1 or up[1] != (mid or down)[0] or (mid and (mid[1] != down[0] or math.prod(down[2:]) != 1)):
        return None
    return up[0], math.prod(down[1:]) * (math.prod(mid[2:]) if mid else 1)


def _hada_size(shapes: Mapping[str, Shape], one: str) -> tuple[int, int] | None:
    (rows, inner), (rank, columns) = shapes[f"hada_w{one}_a"], shapes[f"hada_w{one}_b"]
    core = shapes.get(f"hada_t{one}")
    if core:  # the first factor lies the other way round then
        return (inner, columns * math.prod(core[2:])) if core[:2] == (rows, rank) else None
    return (rows, columns) if inner == rank else None


def _lokr_size(shapes: Mapping[str, Shape], one: str) -> tuple[int, int] | None:
    if whole := shapes.get(f"lokr_w{one}"):
        return whole[0], math.prod(whole[1:])
    first, second, core = shapes[f"lokr_w{one}_a"], shapes[f"lokr_w{one}_b"], shapes.get(f"lokr_t{one}")
    if core:
        return (first[1], second[1] * math.prod(core[2:])) if core[:2] == (first[0], second[0]) else None
    return (first[0], math.prod(second[1:])) if first[1] == second[0] else None
