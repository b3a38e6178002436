"""Names of a base model, and what they tell that its tensors do not.

Anime models need clip skip 2, and distilled models, which generate in few steps, look like their originals.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.base_models import hub
from trainer.base_models.spec import FamilySpec

# NovelAI's model of 2022 was trained on the penultimate layer of the text encoder, and so were those made from it.
_ANIME = re.compile(
    r"(?<![a-z])nai(?![a-z])|novel_?ai|anime|anything|any_?lora|abyss_?orange|orange_?mix|(?<![a-z])aom\d|counterfeit|"
    r"meina|pastel_?mix|hassaku|cetus_?mix|dark_?sushi|grapefruit|mistoon|toonyou|ghost_?mix|rev_?animated",
    re.IGNORECASE,
)
_METADATA = ("modelspec.title", "modelspec.tags", "ss_output_name", "ss_sd_model_name")


def names(path: Path, metadata: Mapping[str, object]) -> str:
    """Return the names that a base model has: of its file or folder, its repository on the hub, and in its metadata."""
    texts = [path.stem if path.suffix == ".safetensors" else path.name, hub.repository(path)]
    texts += [str(metadata[key]) for key in _METADATA if key in metadata]
    return re.sub(r"[\s.-]+", "_", " / ".join(texts))


def names_of_folder(folder: Path, config: Mapping[str, object]) -> str:
    """Return the names of a model in diffusers form, of which the config of its denoiser has one, too."""
    return names(folder, {"modelspec.title": Path(str(config.get("_name_or_path", ""))).name})


def clip_skip(names: str) -> int:
    """Return the clip skip that a Stable Diffusion 1.x model of these names most probably needs."""
    return 2 if _ANIME.search(names) else 1


_LCM = {"original_inference_steps": 200}  # the largest number of steps, which is that of the settings
_TRAILING = {"timestep_spacing": "trailing"}


@dataclass(frozen=True)
class FewStep:
    """A kind of distilled model, and what its authors generate with."""

    title: str
    pattern: str  # of its names
    steps: int
    guidance: float  # 1 = none
    scheduler: str  # class of diffusers
    scheduler_options: Mapping[str, object]


# A model of two kinds is sampled as the first. Where several numbers of steps are usual, a name often says which.
FEW_STEP_KINDS = (
    # Yin et al. 2024, https://arxiv.org/abs/2405.14867, and the model card of tianweiy/DMD2.
    FewStep("DMD2", r"dmd2|(?<![a-z])dmd(?![a-z])", 4, 1.0, "LCMScheduler", _LCM),
    # Ren et al. 2024, https://arxiv.org/abs/2404.13686, and the model card of ByteDance/Hyper-SD.
    FewStep("Hyper-SD", r"hyper_?sd|(?<![a-z])hyper(?![a-z])", 8, 1.0, "DDIMScheduler", _TRAILING),
    # Lin et al. 2024, https://arxiv.org/abs/2402.13929, and the model card of ByteDance/SDXL-Lightning.
    FewStep("Lightning", "lightning", 8, 1.0, "EulerDiscreteScheduler", _TRAILING),
    # Sauer et al. 2023, https://arxiv.org/abs/2311.17042, and "SDXL Turbo" in the documentation of diffusers.
    FewStep("Turbo", "turbo", 4, 1.0, "EulerAncestralDiscreteScheduler", _TRAILING),
    # Luo et al. 2023, https://arxiv.org/abs/2310.04378 and 2311.05556, and "LCM" in the documentation of diffusers.
    FewStep("LCM", r"(?<![a-z])lcm(?![a-z])", 8, 1.5, "LCMScheduler", _LCM),
)
# Of a family whose distilled models are named by what it is, as its publisher generates with them.
DISTILLED = FewStep("", "", 4, 1.0, "", {})
SCHEDULERS = {"LCMScheduler": FEW_STEP_KINDS[-1]}  # of folders that are distilled, whatever their names


def of_family(names: str, spec: FamilySpec, is_distilled: object = None) -> FewStep | None:
    """Return the kind of a distilled model of a family of transformers; its folder may say if it is one."""
    others = spec.distilled_names if is_distilled is None else ".?" * bool(is_distilled)
    kind = find_few_step(names, usual=spec.few_steps, others=others)
    return replace(kind, title=spec.title) if kind and not kind.title else kind


def find_few_step(names: str, scheduler: str = "", usual: int = 0, others: str = "") -> FewStep | None:
    """Return the kind of a distilled model by its names and the scheduler of its folder; None if it is not one.

    Its steps are those that a name says, or `usual`, or those of its kind. Names that fit the pattern `others` are of
    one, too.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", names).lower()  # dreamshaperLCM is two words
    kind = next((kind for kind in FEW_STEP_KINDS if re.search(kind.pattern, words)), SCHEDULERS.get(scheduler))
    if not kind and others and re.search(others, words):
        kind = DISTILLED
    steps = re.search(r"(?<!\d)([1-9]|1[0-6])_?steps?(?![a-z])", words)
    return kind and replace(kind, steps=int(steps[1]) if steps else usual or kind.steps)


def of_adapter(name: str) -> FewStep | None:
    """Return the kind of a few-step adapter, by the path or name of its file; None if that does not tell."""
    return find_few_step(re.sub(r"[\s.-]+", "_", Path(name).stem))


def predicts_image(names: str) -> bool:
    """Return True if a name is that of Lightning's one-step model, which predicts the image, not its noise."""
    return "1step_x0" in names.lower()
