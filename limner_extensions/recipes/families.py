"""Families in recipes of other programs: their names there, and how kohya's scripts train them by flow matching."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trainer.base_models.registry import FAMILIES, FamilyName
from trainer.base_models.spec import FamilySpec


@dataclass(frozen=True)
class FlowScript:
    """Flow matching in a script of kohya's: its names, and where it differs from the others."""

    word: str  # regular expression for its name in network modules, and in the GUI's settings
    network: str  # module of its LoRA
    files: tuple[str, ...]  # settings with paths of the model's other parts
    mark: str  # one of these that tells the family, whatever the network module
    shift: str  # setting of the factor that shifts noise levels
    usual_shift: float
    usual_sampling: str  # its `timestep_sampling`; "" if `weighting_scheme` alone draws levels
    image_loss: bool  # the error is that of the image, not of the direction to the noise
    as_here: Mapping[str, object]  # what makes it train as Limner does
    usual: Mapping[str, object]  # what it does of these if nothing is said
    unused: tuple[str, ...]  # settings of the other scripts that it takes and does not use
    gui: tuple[str, ...]  # settings that the GUI's files have for all models, and that it hands to this script only
    skipped: Mapping[str, Mapping[str, object]]  # arguments that leave out layers there, by what is adapted here
    layers_differ: bool  # even so it adapts more layers
    splits_qkv: bool  # all its versions can adapt q, k and v each on its own
    blocks: Mapping[str, str] = field(default_factory=dict)  # blocks of ours, by its `train_blocks`
    usual_guidance: float = 0.0  # that its model is told if nothing is said; 0 = it is told none
    joins_qkv: bool = True  # it adapts q, k and v as one layer, unless it is told to `split_qkv`
    lycoris: bool = True  # LyCORIS finds the layers of its blocks
    prefix: str = ""  # of its settings in the GUI's files


@dataclass(frozen=True)
class Flow:
    """Flow matching in a family, for recipes: Limner itself takes the shift of noise levels from the base model."""

    shift: Callable[[int], float]  # by the side of images in pixels, as its published models and the programs have it
    # That of OneTrainer's dynamic shifting; None = it ignores that.
    dynamic: Callable[[int], float] | None = field(default=None, kw_only=True)
    # Other base models of the family: regular expression for their names, and their shift, which the programs ignore.
    others: tuple[str, float] = field(default=("(?!)", 0.0), kw_only=True)

    def own_shift(self, base: str, side: int) -> float:
        """Return the shift of a base model, by its name on the hub, for images of a side in pixels."""
        pattern, shift = self.others
        return shift if re.search(pattern, base, re.IGNORECASE) else self.shift(side)


@dataclass(frozen=True)
class ScriptedFlow(Flow):
    """The same in a family that a script of kohya's trains."""

    kohya: FlowScript


@dataclass(frozen=True)
class RecipeNames:
    """Names of a family in recipes: ai-toolkit's `arch` and marks, OneTrainer's `model_type`, sd-scripts' script."""

    names: tuple[str, ...]
    script: str = "train_network.py"  # "" if there is none
    flow: Flow | None = None  # if it is trained by flow matching
    blocks: tuple[str, ...] = ()  # those that the programs adapt, as names of ours contain them; () = all
    refused: str = "(?!)"  # regular expression for base models that have its names, and that Limner does not train


def _dynamic(many: int, high: float) -> Callable[[int], float]:
    """Return the shift of a scheduler for square images by their side in pixels: a token is 16 pixels wide."""
    few, low = 256, 0.5
    return lambda side: math.exp(low + (high - low) / (many - few) * ((side / 16) ** 2 - few))


shift_by_size = _dynamic(many=4096, high=1.15)  # of FLUX.1 dev and FLUX.2
BY_SIZE = "flux_shift"  # `timestep_sampling` of kohya's scripts that shifts so
_qwen_shift = _dynamic(many=8192, high=0.9)
_krea_shift = _dynamic(many=6400, high=1.15)


# Read from kohya-ss/sd-scripts at commit 48d368f: sd3_train_network.py, library/sd3_train_utils.py,
# networks/lora_sd3.py.
_SD3_MODULATION = ("context_mod_dim", "x_mod_dim")
_SD3_USUAL = {"t5xxl_max_token_length": 256, "apply_t5_attn_mask": False, "apply_lg_attn_mask": False}
_SD3 = FlowScript(
    word="sd3",
    network="networks.lora_sd3",
    files=("clip_l", "clip_g", "t5xxl"),
    mark="clip_g",
    shift="training_shift",
    usual_shift=1.0,
    usual_sampling="",
    image_loss=True,
    as_here=_SD3_USUAL,
    usual=_SD3_USUAL,
    unused=("noise_offset", "ip_noise_gamma"),
    gui=("weighting_scheme", "logit_mean", "logit_std", "mode_scale"),
    skipped={
        "attention+ff": dict.fromkeys(_SD3_MODULATION, 0),
        "attention": dict.fromkeys((*_SD3_MODULATION, "context_mlp_dim", "x_mlp_dim"), 0),
    },
    layers_differ=False,
    splits_qkv=True,
)
# Read from kohya-ss/sd-scripts at commit 48d368f: flux_train_network.py, library/flux_train_utils.py,
# networks/lora_flux.py.
_FLUX_T5 = {"t5xxl_max_token_length": 512, "apply_t5_attn_mask": False}
_FLUX_AS_HERE = {"model_prediction_type": "raw", **_FLUX_T5}
_FLUX_MODULATION = ("img_mod_dim", "txt_mod_dim", "single_mod_dim")
_FLUX = FlowScript(
    word=r"flux1?(?!_?\.?\d)",
    network="networks.lora_flux",
    files=("clip_l", "t5xxl", "ae"),
    mark="ae",
    shift="discrete_flow_shift",
    usual_shift=3.0,
    usual_sampling="sigma",
    image_loss=False,
    as_here=_FLUX_AS_HERE,
    usual=_FLUX_AS_HERE | {"model_prediction_type": "sigma_scaled"},
    usual_guidance=3.5,
    unused=("noise_offset", "min_timestep", "max_timestep"),
    gui=(
        *("timestep_sampling", "discrete_flow_shift", "model_prediction_type", "guidance_scale", "apply_t5_attn_mask"),
        *("t5xxl_max_token_length", "split_qkv", "split_mode", "train_t5xxl", "t5xxl_lr", "train_double_block_indices"),
        "train_single_block_indices",
    ),
    skipped={
        "attention+ff": dict.fromkeys(_FLUX_MODULATION, 0),
        "attention": dict.fromkeys((*_FLUX_MODULATION, "img_mlp_dim", "txt_mlp_dim"), 0),
    },
    layers_differ=True,  # a rank for `linear1` and `linear2` of single blocks, where ours adapts the attention
    splits_qkv=False,  # it stopped at that until July 2026 (kohya-ss/sd-scripts#2396)
    blocks={"all": "", "single": "single_transformer_blocks"},
)
# Read from kohya-ss/sd-scripts at commit 48d368f: anima_train_network.py, library/anima_train_utils.py,
# networks/lora_anima.py; and from KohakuBlueleaf/LyCORIS at commit f49d30d, whose presets name no block of it.
_ANIMA_WORDS = {"qwen3_max_token_length": 512, "t5_max_token_length": 512}
_ANIMA = FlowScript(
    word="anima",
    network="networks.lora_anima",
    files=("qwen3", "vae"),
    mark="qwen3",
    shift="discrete_flow_shift",
    usual_shift=1.0,
    usual_sampling="sigmoid",
    image_loss=False,
    as_here=_ANIMA_WORDS,
    usual=_ANIMA_WORDS,
    unused=("noise_offset", "min_timestep", "max_timestep"),
    gui=("timestep_sampling", "discrete_flow_shift", "sigmoid_scale"),
    skipped={"attention+ff": {}, "attention": {"exclude_patterns": r"[r'.*\.mlp\..*']"}},
    layers_differ=False,
    splits_qkv=False,
    joins_qkv=False,
    lycoris=False,
    prefix="anima_",
)
NAMES: dict[FamilyName, RecipeNames] = {
    "sd15": RecipeNames(("sd1", "STABLE_DIFFUSION_15")),
    "sd21": RecipeNames(
        ("sd2", *("STABLE_DIFFUSION_20", "STABLE_DIFFUSION_20_BASE", "STABLE_DIFFUSION_21", "STABLE_DIFFUSION_21_BASE"))
    ),
    "sdxl": RecipeNames(("sdxl", "STABLE_DIFFUSION_XL_10_BASE"), "sdxl_train_network.py"),
    "sd3": RecipeNames(
        ("sd3", "is_v3", "STABLE_DIFFUSION_3", "STABLE_DIFFUSION_35"),
        "sd3_train_network.py",
        ScriptedFlow(lambda _side: 3.0, _SD3),  # `shift` of its scheduler
    ),
    "flux": RecipeNames(
        ("flux", "is_flux", "FLUX_DEV_1"),
        "flux_train_network.py",
        ScriptedFlow(shift_by_size, _FLUX, dynamic=shift_by_size),
    ),
    # Read from Nerogar/OneTrainer at commit 23df383, whose dynamic shift is that of FLUX.1, and ostris/ai-toolkit at
    # 27a03a9, which has a shift of 3 for both models, as Turbo; kohya's scripts have none for it.
    "z_image": RecipeNames(
        ("zimage", "Z_IMAGE"),
        "",
        Flow(lambda _side: 3.0, dynamic=shift_by_size, others=(r"/z-image$", 6.0)),
        blocks=("layers.",),  # without those that refine text and image before
    ),
    # Likewise: both shift by the size of images as FLUX.1 does, and OneTrainer has one name for FLUX.2 dev and klein.
    "flux2_klein": RecipeNames(
        ("flux2_klein_4b", "flux2_klein_9b", "FLUX_2"),
        "",
        Flow(shift_by_size, dynamic=shift_by_size),
        refused=r"flux\.2-dev",
    ),
    # Likewise: both shift as the scheduler of Qwen-Image says.
    "qwen_image": RecipeNames(
        ("qwen_image", "QWEN"), "", Flow(_qwen_shift, dynamic=_qwen_shift), refused=r"qwen-image-(edit|layered)"
    ),
    # Likewise: both shift as the scheduler of Krea 2 says.
    "krea2": RecipeNames(("krea2", "KREA_2"), "", Flow(_krea_shift, dynamic=_krea_shift)),
    # Likewise at 82173b1 and 7c7ce14: both take the shift of the scheduler, OneTrainer if it is to depend on the size.
    "anima": RecipeNames(
        ("anima", "ANIMA"),
        "anima_train_network.py",
        ScriptedFlow(lambda _side: 3.0, _ANIMA, dynamic=lambda _side: 3.0),
    ),
}
SPECS = {name: FAMILIES[family] for family, row in NAMES.items() for name in row.names}
# Models that recipes name and that none here is for, and how settings for them begin in kohya's GUI.
OTHER_MODELS = re.compile(r"FLUX_?\.?[2-9]|lumina|hunyuan|wan|chroma|qwen|hidream", re.IGNORECASE)
OTHER_WORDS = ("hunyuan", "lumina", "chroma")
FLOWS = [(FAMILIES[family], row.flow.kohya) for family, row in NAMES.items() if isinstance(row.flow, ScriptedFlow)]


def scripted(flow: Flow | None) -> ScriptedFlow | None:
    """Return the flow matching of a family if a script of kohya's trains it."""
    return flow if isinstance(flow, ScriptedFlow) else None


def names_of(spec: FamilySpec) -> RecipeNames:
    """Return the names of a family that recipes may be for."""
    return next(row for family, row in NAMES.items() if FAMILIES[family] is spec)


def flow_of(spec: FamilySpec | None) -> Flow | None:
    """Return the flow matching of a family, None if its noise is discrete."""
    if spec is None:
        return None
    return names_of(spec).flow
