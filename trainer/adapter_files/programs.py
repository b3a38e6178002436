"""Loading rules of other programs, as data: which names and kinds of layers each reads, and what it does with others.

They were read from the programs' sources, at the commit that stands with each, and are held against what the programs
do by `benchmarks.verdicts`, which runs their own loading code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from trainer.i18n import _

# How a file names a layer of the UNet ("attention" where the name of a layer within attention, "to_q", counts).
UnetName = Literal[
    "original",  # as the original models, in a family whose files do so: lora_unet_input_blocks_4_1_...
    "foreign original",  # the same in another family
    "diffusers",  # as diffusers, with underscores: lora_unet_down_blocks_0_...
    "lycoris",  # the same with the prefix lycoris_
    "dotted",  # with dots, and with `unet.`
    "dotted attention",
    "bare",  # without `unet.`
    "bare attention",
    "peft",  # with `base_model.model.`
    "processor",  # with dots, attention as diffusers named it in 2023
    "mixed processor",  # the same with PEFT's tensors
    "generic",  # as ComfyUI's own models: diffusion_model.input_blocks.4.1...
    "bare original",  # input_blocks.4.1...
    "oft",  # as sd-scripts' OFT: oft_unet_input_blocks_4_1_...
    "oft diffusers",  # oft_unet_down_blocks_0_...
]
# How it names a layer of a text encoder:
#   own                with the family's own prefix: lora_te_, and for XL lora_te1_ and lora_te2_
#   te1 for the only   lora_te1_ where there is one encoder; te for the first: lora_te_ where there are two
#   other prefix       that of another family
#   dotted             text_encoder.text_model...; dotted flat: without text_model
#   generic            as ComfyUI's own models: text_encoders.clip_l.transformer.text_model...
#   t5                 T5 as sd-scripts: lora_te3_encoder_block...; t5 by folder: as OneTrainer, for FLUX.1 lora_te2_
#   t5 first           T5 without CLIP, as of Chroma: lora_te1_; t5 only: lora_te_; t5 third: lora_te3_
#   dotted t5          T5 by its folder: text_encoder_2.encoder.block...; ComfyUI read at 41444b52 on 2026-11-30
TextName = (
    Literal["own", "te1 for the only", "te for the first", "other prefix", "dotted", "dotted flat", "flat", "generic"]
    | Literal["t5", "t5 by folder", "t5 first", "t5 only", "t5 third", "dotted t5"]
)
# How an adapter file names a layer of a transformer:
#   joined       as the original code, which joins layers: lora_unet_joint_blocks_0_x_block_attn_qkv
#   onetrainer   as diffusers, with underscores: lora_transformer_transformer_blocks_0_attn_to_q; lycoris: lycoris_...
#   dotted       with dots: transformer.transformer_blocks.0.attn.to_q; peft: base_model.model....; bare: no prefix
#   generic      as the original code, with dots: diffusion_model.joint_blocks.0.x_block.attn.qkv; generic peft: the
#                same with PEFT's tensors; generic dotted: with the layers of diffusers, as ai-toolkit writes some;
#                bare original: without the prefix, as OneTrainer's form of that name
#   musubi       as diffusers under kohya's prefix: lora_unet_layers_0_attention_to_q, of musubi-tuner and OneTrainer
_Usual = Literal["joined", "onetrainer", "lycoris", "dotted", "peft", "generic", "generic peft", "generic dotted"]
LayerNaming = Literal[_Usual, "bare", "bare original", "musubi"]
# What a program does with alphas and a DoRA's lengths beside lora_A under a name ("needs" them to read it at all).
Beside = Literal["reads", "needs", "drops", "stops"]
# What a program does with a file of which it cannot use everything.
Strictness = Literal["leaves out", "refuses"]


@dataclass(frozen=True)
class Reading:
    """Handling of a kind of layer by a program: what `differs` from what is meant, also only if it is `scaled`."""

    differs: str = ""
    scaled: str = ""


RIGHT = Reading()
_OVER_BASE = Reading(
    _("it scales DoRA's magnitudes relative to the base's weights; the effect of a LoRA is off by about 6 %")
)
_WRONG_AXIS = Reading(_("it applies DoRA's magnitudes along the wrong axis, which ruins the images"))
_LORA_ALONE = Reading(
    _("it leaves out DoRA's magnitudes and applies the LoRA alone; with Micro that is off by about 24 %")
)
_CONSTRAINT = Reading(_("it takes OFT's constraint for a much smaller one, so that next to nothing changes"))
_SQUARED = Reading(scaled=_("LyCORIS multiplies by alpha / rank twice"))
_BROKEN_BIAS = Reading(_("it adds the change of the biases to the weights"))

_LORA: Mapping[str, Reading] = {"LoRA": RIGHT, "Tucker LoRA": RIGHT, "DyLoRA": RIGHT}
_HADAMARD: Mapping[str, Reading] = dict.fromkeys(
    ("LoHa", "convolution LoHa", "LoKr", "Tucker LoKr", "whole LoKr"), RIGHT
)
_DORA = ("DoRA", "Tucker DoRA", "LoHa with DoRA", "LoKr with DoRA", "whole LoKr with DoRA")
_DORA_BY_INPUT: Mapping[str, Reading] = {f"{kind} by input": RIGHT for kind in _DORA}


def _by_output(reading: Reading) -> dict[str, Reading]:
    return {f"{kind} by output": reading for kind in _DORA}


@dataclass(frozen=True)
class Program:
    """Rules by which a program reads adapter files, and the source that they were read from, on the day `read`.

    `reads` are the kinds of layers that it applies; layers of other kinds or names are unmatched. The texts say what it
    does with a key that matches nothing, a missing alpha and a wrong size.
    """

    name: str
    repository: str
    commit: str
    read: str
    unet_names: frozenset[UnetName]
    text_names: frozenset[TextName]
    reads: Mapping[str, Reading]
    unmatched: str
    wrong_size: str
    strictness: Strictness = "leaves out"
    limit: int = 0  # unmatched keys that it allows nevertheless, if it refuses
    missing_alpha: str = _("layers without alpha act as if alpha were the rank")
    biases: Literal["reads", "leaves out", "stops"] = "leaves out"  # changes of biases beside a LoRA
    text_projection: bool = True  # whether it applies the layer after XL's second text encoder
    reads_peft: bool = False  # its alphas in the metadata, and biases of its LoRA
    lenient_with_peft: bool = False  # leaves out what it does not know in PEFT's format, and all names of ComfyUI
    refused_kinds: Mapping[str, str] = field(default_factory=dict)


_LOSES_CORES = Reading(_("it leaves out the convolutions of a LoKr that has cores (Tucker)"))
_FLAT_UPS = _("it stops at convolutions whose ups are flat, as LyCORIS' DyLoRA has them")
_FLAT_LOHA = _("it stops at a LoHa whose factors have the shapes of convolutions")
_RESHAPES = _("it reshapes what does not fit, and then silently does something else")
_STOPS, _LEFT_OUT = _("it stops with an error"), _("left out")
_COMFY_UNET: frozenset[UnetName] = frozenset(get_args(UnetName)) - {
    *("dotted attention", "bare attention", "bare original", "peft", "oft", "oft diffusers")
}
_COMFY_TEXT: frozenset[TextName] = frozenset(
    ("own", "te1 for the only", "te for the first", "dotted", "t5", "t5 by folder", "t5 first")
)
_COMMON_KINDS = {**_LORA, **_HADAMARD, **_DORA_BY_INPUT, "full": RIGHT, "norm": RIGHT}
_COMFY_KINDS = {**_COMMON_KINDS, **_by_output(_OVER_BASE), "GLoRA": RIGHT, "DoRA of PEFT": _LORA_ALONE}
_WEBUI_KINDS = {**_COMMON_KINDS, **_by_output(_WRONG_AXIS), "IA3": RIGHT, "text norm": RIGHT}

PROGRAMS = (
    Program(
        "ComfyUI",
        "comfyanonymous/ComfyUI",
        "3cd7b32f",
        "2026-11-27",
        _COMFY_UNET,
        _COMFY_TEXT | {"generic"},
        {**_COMFY_KINDS, "Tucker LoKr": _LOSES_CORES, "OFT": RIGHT, "constrained OFT": _CONSTRAINT, "BOFT": RIGHT},
        _("left out, with a line in the log only"),
        _RESHAPES,
        biases="reads",
        refused_kinds={"convolution LoHa": _FLAT_LOHA},
    ),
    Program(
        "A1111",
        "AUTOMATIC1111/stable-diffusion-webui",
        "82a973c0",
        "2026-11-27",
        frozenset(("original", "foreign original", "diffusers", "oft")),
        frozenset(("own", "te1 for the only")),
        {**_WEBUI_KINDS, "OFT": RIGHT, "constrained OFT": RIGHT, "BOFT": RIGHT},
        _LEFT_OUT,
        _("it stops or does something else"),
        text_projection=False,
        refused_kinds={
            "bias": _("it stops at a layer that has the change of a bias alone"),
            "OFTv2": _("it stops at OFT of PEFT and OneTrainer"),
        },
    ),
    Program(
        "Forge",
        "lllyasviel/stable-diffusion-webui-forge",
        "dfdcbab6",
        "2026-11-30",
        _COMFY_UNET,
        _COMFY_TEXT | {"t5 third"},
        _COMFY_KINDS,
        _LEFT_OUT,
        _RESHAPES,
        strictness="refuses",
        limit=12,
        biases="reads",
        refused_kinds={
            "Tucker LoKr": _("it stops at a LoKr that has cores (Tucker)"),
            "convolution LoHa": _FLAT_LOHA,
        },
    ),
    Program(
        "InvokeAI",
        "invoke-ai/InvokeAI",
        "8e71a8a5",
        "2026-11-30",
        frozenset(("original", "diffusers")),
        frozenset(("own", "t5 by folder")),
        {
            **_LORA,
            **_HADAMARD,
            "DoRA by input": RIGHT,
            "DoRA by output": _WRONG_AXIS,
            "IA3": RIGHT,
            "full": RIGHT,
            "norm": RIGHT,
            "text norm": RIGHT,
        },
        _LEFT_OUT,
        _STOPS,
        refused_kinds={
            "LoHa with DoRA": _("it takes LoHa with DoRA for a LoRA, and stops"),
            "LoKr with DoRA": _("it takes LoKr with DoRA for a LoRA, and stops"),
            "whole LoKr with DoRA": _("it takes LoKr with DoRA for a LoRA, and stops"),
            "convolution IA3": _("it stops at IA3 of a convolution"),
            "convolution LoHa": _FLAT_LOHA,
            "Tucker DoRA": _("it stops at a DoRA that has cores (Tucker)"),
        },
    ),
    Program(
        "sd-scripts",
        "kohya-ss/sd-scripts, KohakuBlueleaf/LyCORIS",
        "48d368fa, f49d30d6",
        "2026-11-30",
        frozenset(("original", "diffusers", "oft", "oft diffusers")),
        frozenset(("own", "t5", "t5 third")),
        {
            "LoRA": RIGHT,
            "Tucker LoRA": RIGHT,
            **_by_output(_SQUARED),
            "DoRA by output": RIGHT,
            "Tucker DoRA by output": RIGHT,
            "LoHa": _SQUARED,
            "LoKr": _SQUARED,
            "whole LoKr": RIGHT,
            "GLoRA": RIGHT,
            "OFT": RIGHT,
            "constrained OFT": RIGHT,
            "BOFT": RIGHT,
            "norm": RIGHT,
            "text norm": RIGHT,
        },
        _("silently left out"),
        _STOPS,
        text_projection=False,
        refused_kinds=dict.fromkeys(
            ("full", "IA3", "convolution IA3", "convolution LoHa", "Tucker LoKr", "OFTv2"),
            _("it stops: LyCORIS cannot load this kind again"),
        )
        | dict.fromkeys(
            _DORA_BY_INPUT,
            _(
                "it stops: LyCORIS reads DoRA's magnitudes for each output only; training can be resumed from it with "
                "wd_on_output=False"
            ),
        )
        | {"DyLoRA": _FLAT_UPS},
    ),
    Program(
        "diffusers",
        "huggingface/diffusers",
        "0.42.1",
        "2026-11-30",
        frozenset(("original", "diffusers", "dotted", "dotted attention", "processor")),
        frozenset(("own", "te1 for the only", "te for the first", "other prefix", "dotted", "dotted flat")),
        {"LoRA": RIGHT, "DoRA by input": _LORA_ALONE, "DoRA by output": _LORA_ALONE, "DoRA of PEFT": RIGHT},
        _STOPS,
        _STOPS,
        strictness="refuses",
        missing_alpha="",
        reads_peft=True,
        lenient_with_peft=True,
        refused_kinds={"DyLoRA": _FLAT_UPS},
    ),
    Program(
        "SD.Next",
        "vladmandic/sdnext",
        "058a7f0c",
        "2026-11-30",
        frozenset(("original", "diffusers", "oft")),
        frozenset(("own", "t5 by folder", "t5 only")),
        {
            **_WEBUI_KINDS,
            **_by_output(RIGHT),
            "constrained OFT": RIGHT,
            "norm": _BROKEN_BIAS,
            "text norm": _BROKEN_BIAS,
        },
        _LEFT_OUT,
        _STOPS,
        biases="stops",
        refused_kinds={"convolution IA3": _("it stops at IA3 of a convolution")},
    ),
)


def sources() -> str:
    """Return which code the rules were read from, and when."""
    read = [f"{program.name} {program.commit} ({program.read})" for program in PROGRAMS]
    return _("By the rules of the programs' code, as read on these days: {sources}.", sources="; ".join(read))
