"""Rules by family: which programs read which names of a transformer's layers, and names in the metadata of files.

The rules for all families are in `programs`.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import get_args

from trainer.adapter_files.programs import Beside, LayerNaming
from trainer.base_models.layer_names import T5, Place
from trainer.base_models.registry import FamilyName
from trainer.base_models.spec import PredictionType
from trainer.i18n import _


@dataclass(frozen=True)
class Support:
    """Rules of a program for adapters of a transformer, besides its rules for all families."""

    reads: tuple[LayerNaming, ...]
    kinds: tuple[str, ...] | None = None  # of layers that it reads; None: those that it reads elsewhere
    layers: tuple[str, ...] = ()  # endings of the paths of layers that it reads, if not all
    alone: tuple[LayerNaming, ...] = ()  # that it reads only if all layers are of the transformer's blocks
    differs: Mapping[LayerNaming, str] = field(default_factory=dict)  # what it does otherwise than meant
    stops: Mapping[LayerNaming, str] = field(default_factory=dict)  # why it refuses a file
    refuses_unmatched: bool = False
    outside: tuple[LayerNaming, ...] = get_args(LayerNaming)  # in which it also reads layers outside blocks
    lost: Mapping[LayerNaming, tuple[str, ...]] = field(default_factory=dict)  # of these, what it drops without a word
    beside: Mapping[LayerNaming, Beside] = field(default_factory=dict)
    t5_left_out: tuple[LayerNaming, ...] = ()  # beside which it leaves out T5's layers, whatever it refuses

    def applies(self, name: LayerNaming, place: Place) -> bool:
        """Return True if a program applies a layer with such a name."""
        if place.block == "outside" and (self.drops(name, place, {name}) or name not in self.outside):
            return False
        return name in self.reads and place.path.endswith(self.layers or ("",))

    def drops(self, name: LayerNaming | None, place: Place | None, beside: Set[LayerNaming]) -> bool:
        """Return True if a program knows the name of a layer and leaves it out, in a file with such names."""
        if place and place.component == T5:
            return bool({*self.t5_left_out} & beside)
        return bool(name and place and place.block == "outside" and place.path.startswith(self.lost.get(name, ())))


_GENERIC: tuple[LayerNaming, ...] = ("generic", "generic peft")
_OF_PEFT = ("LoRA", "DoRA of PEFT")
_READS: Mapping[LayerNaming, Beside] = dict.fromkeys((*_GENERIC, "bare original", "dotted", "bare"), "reads")
# It drops layers of kohya's format that it has no name for.
_KLEIN_IN_DIFFUSERS = Support(
    ("joined", "dotted", "generic peft", "generic dotted"),
    kinds=_OF_PEFT,
    lost={"joined": ("norm_out", "double_stream", "single_stream")},
    outside=("joined", "dotted", "generic peft"),
    refuses_unmatched=True,
)
_QWEN_IN_DIFFUSERS = Support(
    ("joined", "dotted", "bare", *_GENERIC),
    kinds=_OF_PEFT,
    beside={**dict.fromkeys(_GENERIC, "reads"), "bare": "needs"},
    refuses_unmatched=True,
)
# By the family of the transformer. Read at the same commits: InvokeAI has no adapters for SD 3, A1111 has no FLUX, and
# neither has Chroma, which to ComfyUI and diffusers is a FLUX, and to Forge is not.
SUPPORT: dict[FamilyName, Mapping[str, Support]] = {
    "sd3": {
        "ComfyUI": Support(("joined", "onetrainer", "lycoris", "dotted", "peft", *_GENERIC)),
        "A1111": Support(
            ("dotted",),
            layers=("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            stops=dict.fromkeys(("joined", "onetrainer"), _("it stops at the alphas of kohya's format")),
        ),
        "Forge": Support(("joined", *_GENERIC), refuses_unmatched=True),
        "sd-scripts": Support(("joined",), kinds=("LoRA",)),
        "diffusers": Support(("dotted",), kinds=_OF_PEFT),
        "SD.Next": Support(
            ("joined", "onetrainer", "lycoris"),
            outside=("onetrainer", "lycoris"),
            alone=("joined",),
            differs={
                "joined": _("it applies the attention of the image to the text, and that of the text to the image")
            },
        ),
    },
    "flux": {
        "ComfyUI": Support(("joined", "onetrainer", "lycoris", "dotted", *_GENERIC)),
        "Forge": Support(("joined", "onetrainer", "lycoris", "dotted", *_GENERIC), refuses_unmatched=True),
        "InvokeAI": Support(
            ("joined", "onetrainer", "dotted", "generic peft"),
            outside=("dotted",),
            beside={"dotted": "stops"},
            refuses_unmatched=True,
        ),
        "sd-scripts": Support(("joined",), kinds=("LoRA",), lost={"joined": ("norm_out", "proj_out")}),
        "diffusers": Support(
            ("joined", "dotted", "generic"),
            kinds=_OF_PEFT,
            lost={"joined": ("",)},
            beside=_READS,
            t5_left_out=("joined",),
            refuses_unmatched=True,
        ),
        "SD.Next": Support(("joined", "onetrainer", "lycoris"), outside=("onetrainer", "lycoris"), alone=("joined",)),
    },
    "chroma": {
        "ComfyUI": Support(("joined", "onetrainer", "lycoris", "dotted", *_GENERIC)),
        "Forge": Support(("joined", *_GENERIC), refuses_unmatched=True),
        "sd-scripts": Support(("joined",), kinds=("LoRA",), lost={"joined": ("proj_out", "distilled_guidance")}),
        "diffusers": Support(
            ("joined", "dotted", "generic"),
            kinds=_OF_PEFT,
            outside=("dotted", "generic"),
            lost={"joined": ("x_embedder", "context_embedder", "proj_out")},
            beside=_READS,
            refuses_unmatched=True,
        ),
        "SD.Next": Support(("joined", "onetrainer", "lycoris", "dotted", "generic")),
    },
    # ComfyUI's names are those of Comfy-Org/ComfyUI 17358c8f (`comfy/lora.py`) and 09708eae (`comfy/utils.py`,
    # `flux_to_diffusers`), InvokeAI's of 0b54f537 and 540b2ee4 (`lora_conversions`). SD.Next hands LoRA to diffusers at
    # 091f31d4 (`pipelines/flux/flux2_lora.py`). All were read on 2026-12-01. The others have no FLUX.2.
    "flux2_klein": {
        "ComfyUI": Support(
            ("joined", "onetrainer", "lycoris", "dotted", *_GENERIC),
            lost=dict.fromkeys(
                ("onetrainer", "lycoris", "dotted"), ("time_guidance", "double_stream", "single_stream")
            ),
        ),
        "InvokeAI": Support(
            ("dotted", "bare", "generic peft"), beside={"dotted": "stops", "bare": "stops"}, refuses_unmatched=True
        ),
        "diffusers": _KLEIN_IN_DIFFUSERS,
        "SD.Next": replace(_KLEIN_IN_DIFFUSERS, reads=("joined", "dotted", "bare", "generic peft")),
    },
    # Of ComfyUI the names are those of Comfy-Org/ComfyUI 17358c8f (`comfy/lora.py`) and b3be02d6 (`comfy/utils.py`,
    # `z_image_to_diffusers`), read on 2026-12-01. A1111, Forge and sd-scripts have no Z-Image at the commits above.
    "z_image": {
        "ComfyUI": Support(("joined", "lycoris", "dotted", "generic dotted", *_GENERIC)),
        "InvokeAI": Support(
            ("dotted", "generic dotted"), beside={"dotted": "drops", "generic dotted": "drops"}, refuses_unmatched=True
        ),
        "diffusers": Support(
            ("joined", "musubi", "dotted", "generic dotted", "bare"),
            kinds=_OF_PEFT,
            outside=("musubi", "dotted", "generic dotted", "bare"),
            beside={"generic dotted": "reads", "bare": "needs"},
            refuses_unmatched=True,
        ),
        # Read at 18bbe288 (`pipelines/z_image/zimage_lora.py`), with the last three names.
        "SD.Next": Support(tuple(name for name in get_args(LayerNaming) if name != "peft")),
    },
    # The original names are those of diffusers. ComfyUI's were read at Comfy-Org/ComfyUI a125cd84 (`comfy/lora.py`),
    # InvokeAI's at 8e71a8a5 (`qwen_image_lora_conversion_utils.py`), on 2026-12-01. The others have no Qwen-Image.
    "qwen_image": {
        "ComfyUI": Support(("joined", "lycoris", "dotted", "bare", *_GENERIC)),
        "InvokeAI": Support(
            ("joined", "dotted", "bare"),
            kinds=("LoRA", "DoRA by input", "DoRA by output", "LoKr", "whole LoKr"),
            outside=("dotted", "bare"),
            beside={"dotted": "drops", "bare": "drops"},
        ),
        "diffusers": _QWEN_IN_DIFFUSERS,
        "SD.Next": _QWEN_IN_DIFFUSERS,
    },
    # ComfyUI's names are those of Comfy-Org/ComfyUI 17358c8f (`comfy/lora.py`), InvokeAI's of 8e71a8a5
    # (`krea2_lora_conversion_utils.py`), SD.Next's of 058a7f0c (`pipelines/krea2/krea2_lora.py`), read on 2026-12-01.
    # The others have no Krea 2.
    "krea2": {
        "ComfyUI": Support(("joined", "lycoris", "dotted", "generic dotted", "bare", *_GENERIC)),
        "InvokeAI": Support(
            ("joined", "dotted", "generic dotted", "bare", "bare original", *_GENERIC),
            kinds=("LoRA", "DoRA by input", "DoRA by output"),
        ),
        "diffusers": Support(
            ("dotted", "generic peft"),
            kinds=_OF_PEFT,
            stops=dict.fromkeys(("generic", "generic dotted"), _("it stops at these names")),
        ),
        "SD.Next": Support(("joined", "dotted", "generic dotted", "bare", "bare original", *_GENERIC)),
    },
    # ComfyUI's names are those of Comfy-Org/ComfyUI 17358c8f (`comfy/lora.py`), InvokeAI's of 8e71a8a5
    # (`anima_lora_conversion_utils.py`), sd-scripts' of 48d368fa (`networks/lora_anima.py`), SD.Next's of 058a7f0c
    # (`pipelines/anima/anima_lora.py`), read on 2026-12-02. Forge and A1111 have no Anima at the commits above.
    "anima": {
        "ComfyUI": Support(("joined", *_GENERIC)),
        "InvokeAI": Support(
            ("joined", *_GENERIC), outside=_GENERIC, beside=dict.fromkeys(_GENERIC, "drops"), refuses_unmatched=True
        ),
        "sd-scripts": Support(("joined",), kinds=("LoRA",)),
        "diffusers": Support(
            ("dotted", "generic peft"),
            kinds=_OF_PEFT,
            stops=dict.fromkeys(("generic", "generic dotted"), _("it stops at these names")),
            beside={"dotted": "stops", "generic peft": "stops"},
        ),
        "SD.Next": Support(("joined", "lycoris", *_GENERIC)),
    },
}


@dataclass(frozen=True)
class MetadataNames:
    """Names of a family in the metadata of adapter files."""

    # `modelspec.architecture` without `/lora`, and `ss_base_model_version`, by what the base model predicts
    names: Mapping[PredictionType, tuple[str, str]]
    prefixes: tuple[str, ...]  # of both, in files of any program
    v2: bool = False  # `ss_v2`
    sizes: Mapping[str, str] = field(default_factory=dict)  # architectures of its sizes, by their configs


_DISCRETE: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
# As sd-scripts 48d368fa names them (`library/sai_model_spec.py`, `library/sd3_utils.py`, `library/flux_utils.py`).
METADATA: dict[FamilyName, MetadataNames] = {
    "sd15": MetadataNames(
        dict.fromkeys(_DISCRETE, ("stable-diffusion-v1", "sd_v1")), ("stable-diffusion-v1", "sd_v1", "sd_1")
    ),
    "sd21": MetadataNames(
        {
            "epsilon": ("stable-diffusion-v2-512", "sd_v2_512"),
            "v_prediction": ("stable-diffusion-v2-768-v", "sd_v2_768_v"),
        },
        ("stable-diffusion-v2", "sd_v2"),
        v2=True,
    ),
    "sdxl": MetadataNames(
        dict.fromkeys(_DISCRETE, ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0")), ("stable-diffusion-xl", "sdxl")
    ),
    "sd3": MetadataNames(
        {"flow": ("stable-diffusion-3-m", "sd3")},
        ("stable-diffusion-3", "stable-diffusion-v3", "sd3"),
        sizes={"sd3-5-medium": "stable-diffusion-3-5-medium", "sd3-5-large": "stable-diffusion-3-5-large"},
    ),
    # As musubi-tuner, OneTrainer (modelspec) and ai-toolkit name the models; before FLUX.1, whose names begin them all.
    "flux2_klein": MetadataNames(
        {"flow": ("Flux.2-klein-4b", "flux2_klein_4b")},
        ("Flux.2", "flux2_klein", "flux2-klein", "flux-2-klein"),
        sizes={"flux2_klein-9b": "Flux.2-klein-9b"},
    ),
    "flux": MetadataNames({"flow": ("flux-1-dev", "flux1")}, ("flux-1", "flux1", "flux", "Flux.1")),
    "chroma": MetadataNames({"flow": ("chroma", "chroma")}, ("chroma", "Chroma")),
    "z_image": MetadataNames({"flow": ("Z-Image", "zimage")}, ("Z-Image", "zimage")),  # as OneTrainer and ai-toolkit
    # As OneTrainer and musubi-tuner (modelspec) and ai-toolkit name it.
    "qwen_image": MetadataNames({"flow": ("Qwen-Image", "qwen_image")}, ("Qwen-Image", "qwen_image", "qwen-image")),
    "krea2": MetadataNames({"flow": ("Krea-2", "krea2")}, ("Krea-2", "krea2")),  # likewise
    # As OneTrainer (modelspec) and sd-scripts 48d368fa (`anima_train_network.py`) name it.
    "anima": MetadataNames({"flow": ("Anima", "anima")}, ("Anima", "anima")),
}
