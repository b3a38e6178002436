"""Names of layers in adapter files: kohya's, with the blocks of diffusers or of the original models, PEFT's, ComfyUI's.

A layer has one `Place`: its component and its path as in the diffusers library, without the text encoders' first level
(`text_model`), which some versions of transformers leave out. Everything here is text; no file is read.
"""

import re
from dataclasses import dataclass
from typing import Literal

from trainer.base_models import transformer_names
from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.base_models.spec import DENOISERS

Component = str  # as in folders in diffusers form: unet, transformer, text_encoder, text_encoder_2; or T5
Naming = Literal["diffusers", "original", "dotted", "generic"]
_TEXT_ENCODERS = {encoder.prefix: encoder.component for spec in FAMILIES.values() for encoder in spec.text_encoders}
T5 = "t5xxl"  # component of T5, which is in another folder in each family; how its files begin, too
T5_PREFIX = "lora_te3_"  # in any family, as sd-scripts has it
_T5_FOLDERS = {spec.adapted_encoder.component for spec in FAMILIES.values() if spec.adapted_encoder}
OFT_PREFIX = "oft_unet_"  # of sd-scripts' own OFT, for the denoiser alone
DENOISER_PREFIXES = ("lora_unet_", "lora_transformer_")
PREFIXES = (*DENOISER_PREFIXES, *_TEXT_ENCODERS, T5_PREFIX)
MAX_NAME = 300
PER_BLOCK = 3  # indices that a block of the UNet takes in the original numbering, in all three families
_COMPONENTS: dict[str, Component] = {
    "lora_unet_": "unet",
    "lycoris_": "unet",
    OFT_PREFIX: "unet",
    "lora_transformer_": "transformer",
    **_TEXT_ENCODERS,
    T5_PREFIX: T5,
}
GENERIC_PREFIX = "diffusion_model."  # of denoisers
# How names in ComfyUI's own files begin: they are the paths in its models, of denoisers the original ones.
_GENERIC: dict[str, Component] = {
    GENERIC_PREFIX: "unet",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": T5,
}
# Layers of a residual block under their original names.
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# Layers outside the blocks, under theirs.
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESIDUAL_BACK = {original: name for name, original in _RESIDUAL.items()}
_OUTSIDE_BACK = {original: name for name, original in _OUTSIDE.items()}
_WORD = re.compile(
    r"(down_blocks|up_blocks|mid_block|input_blocks|middle_block|output_blocks|transformer_blocks|to_[qkv]|to_out"
    r"|proj_in|proj_out|conv_shortcut|time_emb_proj|conv_in|conv_norm_out|conv_out|time_embedding|add_embedding"
    r"|linear_[12]|layer_norm[12]|final_layer_norm|text_projection"
    r"|in_layers|out_layers|emb_layers|skip_connection|time_embed|label_emb|text_model|self_attn|[qkv]_proj|out_proj"
    r"|SelfAttention|DenseReluDense|wi_[01]|[a-z]+\d?|\d+)(?:_|$)"
)
_UNET_PATH = re.compile(
    r"(?:down_blocks\.\d+|up_blocks\.\d+|mid_block)\.(?:attentions\.\d+\.(?:norm|proj_in|proj_out|transformer_blocks\.\d+"
    r"\.(?:norm[123]|attn[12]\.(?:to_[qkv]|to_out\.0)|ff\.net\.(?:0\.proj|2)))|resnets\.\d+\.(?:norm[12]|conv1|conv2"
    r"|conv_shortcut|time_emb_proj)|(?:down|up)samplers\.0\.conv)|conv_in|conv_norm_out|conv_out"
    r"|(?:time|add)_embedding\.linear_[12]"
)
_TEXT_PATH = re.compile(
    r"encoder\.layers\.\d+\.(?:layer_norm[12]|self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12])|final_layer_norm|text_projection"
)
_T5_PATH = re.compile(r"encoder\.block\.\d+\.layer\.(?:0\.SelfAttention\.[qkvo]|1\.DenseReluDense\.w(?:i_[01]|o))")
TEXT_PROJECTION = "text_projection"  # the only layer beside a text encoder's first level, not in it
BIAS = ".lora_B.bias"  # of a LoRA of PEFT, whose scale it has
MAGNITUDE = ".magnitude"  # of a DoRA of ai-toolkit: a length for each output
# Endings of keys in other formats, as kohya's; those that are not here are kohya's or LyCORIS' own.
_ENDINGS = {
    ".lora_A.weight": "lora_down.weight",
    ".lora_B.weight": "lora_up.weight",
    ".lora_A.default.weight": "lora_down.weight",
    ".lora_B.default.weight": "lora_up.weight",
    BIAS: "diff_b",
    ".lora_B.default.bias": "diff_b",
    ".oft_R.default.weight": "oft_R.weight",
    ".lora.down.weight": "lora_down.weight",
    ".lora.up.weight": "lora_up.weight",
    "_lora.down.weight": "lora_down.weight",
    "_lora.up.weight": "lora_up.weight",
    ".lora_linear_layer.down.weight": "lora_down.weight",
    ".lora_linear_layer.up.weight": "lora_up.weight",
    ".lora_magnitude_vector.weight": "dora_scale",
    ".lora_magnitude_vector.default.weight": "dora_scale",
    ".lora_magnitude_vector": "dora_scale",
    MAGNITUDE: "dora_scale",
}
OWN_ENDINGS = (
    "alpha",
    "dora_scale",
    "lora_down.weight",
    "lora_up.weight",
    "lora_mid.weight",
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    *("oft_blocks", "rescale", "on_input", "oft_R.weight", "oft_R.scaled_oft", "oft_R.terms"),
    *("diff", "diff_b", "w_norm", "b_norm"),
)


@dataclass(frozen=True)
class Place:
    """Place of a layer in a model: its component, and its path there."""

    component: Component
    path: str

    @property
    def block(self) -> str:
        """Block of the denoiser that it is in (`down_blocks.1`, `mid_block`), `outside` of them, or its component."""
        if self.component not in DENOISERS:
            return self.component
        if self.component == "transformer":
            return transformer_names.block(self.path) or "outside"
        block = re.match(r"\w+_blocks\.\d+|mid_block", self.path)
        return block[0] if block else "outside"


@dataclass(frozen=True)
class Module:
    """Name of a layer as a file has it; its place is None if no layer has this name."""

    name: str
    place: Place | None
    naming: Naming
    prefix: str
    text_model: bool = True  # whether a text encoder's first level is in the name

    @property
    def component(self) -> Component:
        """Component of its place; "" if it has none, as for its path."""
        return self.place.component if self.place else ""

    @property
    def path(self) -> str:
        """Path of its place."""
        return self.place.path if self.place else ""

    @property
    def in_text_encoder(self) -> bool:
        """True if its place is in a text encoder."""
        return self.component not in ("", *DENOISERS)

    @property
    def named(self) -> Place | None:
        """Its place with the component as a dotted name has it: that of T5 is its folder."""
        return self.place and Place(self.prefix.removesuffix(".") or self.place.component, self.place.path)


def split(key: str) -> tuple[str, str]:
    """Split a key into the layer's name as the file has it, and kohya's ending, which is "" if it is unknown."""
    for foreign, ending in _ENDINGS.items():
        if key.endswith(foreign):
            return key.removesuffix(foreign), ending
    for ending in OWN_ENDINGS:
        if key.endswith(f".{ending}"):
            return key.removesuffix(f".{ending}"), ending
    if key.endswith(".weight") and key.startswith(PREFIXES):  # of IA3; elsewhere it is a model's own weight
        return key.removesuffix(".weight"), "weight"
    return key, ""


def read(name: str, family: FamilyName | None = None) -> Module:
    """Return the layer that a name in a file stands for; a very long name, slow to parse, stands for none.

    The family, where it is known, tells layers of transformers apart that have one original name.
    """
    if len(name) > MAX_NAME:
        return Module(name, None, "diffusers", "")
    prefix = next((prefix for prefix in _COMPONENTS if name.startswith(prefix)), "")
    if not prefix:
        generic = next((prefix for prefix in _GENERIC if name.startswith(prefix)), "")
        by_original, by_diffusers = _read_generic(name, generic, family), _read_dotted(name)
        other = by_original.place not in (None, by_diffusers.place)
        # A name can be of one family in diffusers, and of another one in its original code.
        return by_original if generic or (other and (family or not by_diffusers.place)) else by_diffusers
    component, inner = _COMPONENTS[prefix], name.removeprefix(prefix)
    if component in DENOISERS and (module := _read_transformer(name, inner, prefix, family)):
        return module
    path = dotted(inner)
    naming: Naming = "diffusers"
    if component == "unet" and re.match(r"(input|output)_blocks|middle_block|out\.|time_embed\.|label_emb", path):
        path, naming = from_original(path), "original"
    return _module(name, component, path, naming, prefix)


def _read_transformer(name: str, inner: str, prefix: str, family: FamilyName | None) -> Module | None:
    """Return the layer of a transformer that a name stands for: kohya's are the original ones, others diffusers'.

    Of Z-Image musubi-tuner and OneTrainer have those of diffusers under kohya's prefix, too.
    """
    path = transformer_names.from_original(inner, family) if prefix == "lora_unet_" else ""
    naming: Naming = "original" if path else "diffusers"
    path = path or transformer_names.from_diffusers(inner)
    return Module(name, Place("transformer", path), naming, prefix) if path else None


def _read_generic(name: str, prefix: str, family: FamilyName | None) -> Module:
    component, path = _GENERIC.get(prefix, "unet"), name.removeprefix(prefix)
    if component == "unet":
        if layer := transformer_names.from_original(path, family):
            return Module(name, Place("transformer", layer), "generic", prefix)
        if layer := transformer_names.from_diffusers(path):
            return Module(name, Place("transformer", layer), "dotted", prefix)
        path = from_original(path)
    return _module(name, component, path, "generic", prefix)


def _read_dotted(name: str) -> Module:
    path, prefix = name.removeprefix("base_model.model."), ""
    component = next((known for known in {*_COMPONENTS.values(), *_T5_FOLDERS} if path.startswith(f"{known}.")), "")
    if component:
        prefix = f"{component}."
        path = path.removeprefix(prefix)
    path = path.removeprefix("base_model.model.").replace(".processor.", ".")
    if path.endswith(".to_out") and not transformer_names.from_diffusers(path):
        path += ".0"
    if path and component in ("", "transformer") and (layer := transformer_names.from_diffusers(path)) == path:
        return Module(name, Place("transformer", layer), "dotted", prefix)
    return _module(name, component or "unet", path, "dotted", prefix)


def _module(name: str, component: Component, path: str, naming: Naming, prefix: str) -> Module:
    if component in DENOISERS:
        return Module(
            name, Place(component, path) if component == "unet" and _UNET_PATH.fullmatch(path) else None, naming, prefix
        )
    if _T5_PATH.fullmatch(path) and (component == T5 or any(is_t5(prefix, folder) for folder in _T5_FOLDERS)):
        return Module(name, Place(T5, path), naming, prefix)
    inner = path.removeprefix("text_model.")
    place = Place(component, inner) if component in _TEXT_ENCODERS.values() and _TEXT_PATH.fullmatch(inner) else None
    return Module(name, place, naming, prefix, path.startswith("text_model.") or path == TEXT_PROJECTION)


def dotted(name: str) -> str:
    """Put dots between the levels of a name's path; return "" if it has words that no layer has."""
    words = _WORD.findall(name)
    return ".".join(words) if "_".join(words) == name else ""


def kohya(place: Place, family: FamilyName) -> str:
    """Return the name that a layer has here: the one that all programs read, if there is one.

    Of UNets, with the original blocks for XL, with those of diffusers for others; of transformers, with OneTrainer's.
    """
    if place.component == "transformer":
        return "lora_transformer_" + place.path.replace(".", "_")
    if place.component == "unet":
        path = original(place.path) if FAMILIES[family].original_names else place.path
        return "lora_unet_" + path.replace(".", "_")
    if place.component == T5:
        return T5_PREFIX + place.path.replace(".", "_")
    prefixes = {component: prefix for prefix, component in _TEXT_ENCODERS.items()} | FAMILIES[family].prefixes
    return f"{prefixes[place.component]}{_with_first_level(place).replace('.', '_')}"


def peft(place: Place, family: FamilyName | None = None) -> str:
    """Return the name in PEFT's format, with the text encoders' first level as the published models have it.

    T5 is named by the folder that the family has it in.
    """
    if place.component == T5:
        folders = [t5.component for name, spec in FAMILIES.items() if name == family and (t5 := spec.adapted_encoder)]
        return f"{(*folders, T5)[0]}.{place.path}"
    return f"{place.component}.{place.path if place.component in DENOISERS else _with_first_level(place)}"


def is_t5(prefix: str, folder: str) -> bool:
    """Return True if a name with this prefix can be of T5 in a family that has it in this folder."""
    number = folder.removeprefix("text_encoder").removeprefix("_")  # OneTrainer numbers encoders as folders are
    numbers = (number or "1", number)  # the only encoder has either
    return prefix in (f"{folder}.", *(f"lora_te{number}_" for number in numbers), T5_PREFIX, *_GENERIC)


def _with_first_level(place: Place) -> str:
    return place.path if place.path == TEXT_PROJECTION else f"text_model.{place.path}"


def original(path: str, per_block: int = PER_BLOCK, *, attends: bool = True) -> str:
    """Return the path of a UNet's layer in the original models, which number all blocks in one sequence.

    Args:
        path: the path in diffusers.
        per_block: indices that a block takes: its residual blocks on the way down, and one.
        attends: whether the block on the way up that the layer is in has attention, which an upsampler follows.
    """
    kind, _, rest = path.partition("_blocks.")
    if kind in ("down", "up"):
        return _original_in_block(kind, rest, per_block, attends)
    if path.startswith("mid_block."):
        _, part, layer, inner = path.split(".", 3)
        index = 1 if part == "attentions" else 2 * int(layer)
        return f"middle_block.{index}.{_inner(part, inner).partition('.')[2]}"
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    raise RuntimeError(f"{path} has no name in adapter files")


def _original_in_block(kind: str, path: str, per_block: int, attends: bool) -> str:
    block, part, layer, inner = path.split(".", 3)
    resamples = part in ("downsamplers", "upsamplers")
    index = int(block) * per_block + (per_block - 1 if resamples else int(layer))
    if part == "upsamplers":
        return f"output_blocks.{index}.{2 if attends else 1}.conv"
    if kind == "up":
        return f"output_blocks.{index}.{_inner(part, inner)}"
    inner = "0.op" if resamples else _inner(part, inner)
    return f"input_blocks.{index + 1}.{inner}"  # after conv_in


def _inner(part: str, inner: str) -> str:
    """Return the original name of a layer within a block, where the residual block is first, attention second."""
    return f"0.{_RESIDUAL[inner]}" if part == "resnets" else f"1.{inner}"


def from_original(path: str, per_block: int = PER_BLOCK) -> str:
    """Return the path in diffusers of a UNet's layer by its path in the original models; "" if there is none."""
    if path in _OUTSIDE_BACK:
        return _OUTSIDE_BACK[path]
    match = re.fullmatch(r"(input|middle|output)_blocks?\.(\d+)\.(.+)", path)
    if not match:
        return ""
    side, index, inner = match[1], int(match[2]), match[3]
    if side == "middle":
        return _from_middle(index, inner)
    kind = "down" if side == "input" else "up"
    if side == "input":
        index -= 1  # conv_in
    block, layer = divmod(index, per_block)
    if inner == "0.op":
        return f"{kind}_blocks.{block}.downsamplers.0.conv"
    if side == "output" and inner in ("1.conv", "2.conv"):
        return f"{kind}_blocks.{block}.upsamplers.0.conv"
    number, _, rest = inner.partition(".")
    if number == "0" and rest in _RESIDUAL_BACK:
        return f"{kind}_blocks.{block}.resnets.{layer}.{_RESIDUAL_BACK[rest]}"
    return f"{kind}_blocks.{block}.attentions.{layer}.{rest}" if number == "1" else ""


def _from_middle(index: int, inner: str) -> str:
    if index == 1:
        return f"mid_block.attentions.0.{inner}"
    return f"mid_block.resnets.{index // 2}.{_RESIDUAL_BACK[inner]}" if inner in _RESIDUAL_BACK else ""
