"""Distilled models, which generate in few steps: they look like their originals, so that only names tell."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

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
KINDS = (
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
SCHEDULERS = {"LCMScheduler": KINDS[-1]}  # of folders that are distilled, whatever their names


def find(names: str, scheduler: str = "") -> FewStep | None:
    """Return the kind of a distilled model by its names and the scheduler of its folder; None if it is not one."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", names).lower()  # dreamshaperLCM is two words
    kind = next((kind for kind in KINDS if re.search(kind.pattern, words)), SCHEDULERS.get(scheduler))
    steps = re.search(r"(?<!\d)([1-9]|1[0-6])_?steps?(?![a-z])", words)
    return replace(kind, steps=int(steps[1])) if kind and steps else kind


def predicts_image(names: str) -> bool:
    """Tell whether a name is that of Lightning's one-step model, which predicts the image, not its noise."""
    return "1step_x0" in names.lower()
