"""Settings of the training objective: timesteps, loss type, loss weighting, masks."""

from typing import Literal

from pydantic import Field, model_validator

from trainer.i18n import _
from trainer.schema import Conflict, Section, Share


class ObjectiveConfig(Section):
    """Settings of the training objective."""

    weighting: Literal["none", "min-snr", "debiased", "p2"] = Field(
        "none",
        title="Loss weight",
        description="By noise level: min-SNR (arXiv 2303.09556), debiased (2310.08442) or P2 (2204.00227).",
    )
    min_snr_gamma: float = Field(
        5.0,
        gt=0,
        le=100,
        title="Min-SNR gamma",
        description="Signal-to-noise ratio above which min-SNR lowers the weight.",
    )
    p2_gamma: float = Field(
        1.0,
        gt=0,
        le=5,
        title="P2 gamma",
        description="How strongly P2 favors noisy images.",
    )
    loss_type: Literal["l2", "huber", "scheduled-huber"] = Field(
        "l2",
        title="Loss type",
        description="Squared error, or pseudo-Huber, which is less sensitive to outliers (arXiv 2403.16728).",
    )
    huber_c: float = Field(
        0.1,
        gt=0,
        le=1,
        title="Huber c",
        description="Error above which Huber grows linearly; if scheduled, it falls from 1 to this as noise grows.",
    )
    timestep_sampling: Literal["uniform", "logit-normal", "mode"] = Field(
        "uniform",
        title="Timesteps",
        description="Distribution of noise levels: uniform, or mostly in the middle, with (mode) or without the ends "
        "(logit-normal); Esser et al. 2024, arXiv 2403.03206.",
    )
    logit_mean: float = Field(
        0.0,
        ge=-4,
        le=4,
        title="Logit mean",
        description="Of logit-normal timesteps; above 0 is noisier.",
    )
    logit_std: float = Field(
        1.0,
        gt=0,
        le=4,
        title="Logit spread",
        description="Standard deviation of logit-normal timesteps.",
    )
    mode_scale: float = Field(
        1.29,
        ge=-1,
        le=1.75,
        title="Mode scale",
        description="Of timesteps by mode: how much the middle is preferred; below 0, the ends.",
    )
    min_timestep: int = Field(0, ge=0, le=999, title="First timestep", description="Lowest noise that is trained.")
    max_timestep: int = Field(999, ge=0, le=999, title="Last timestep", description="Highest noise that is trained.")
    noise_offset: Share = Field(
        0.0, title="Noise offset", description="Noise that is constant over each channel; 0.03 to 0.1."
    )
    input_perturbation: Share = Field(
        0.0,
        title="Input perturbation",
        description="Extra noise in the input that is not predicted (Ning et al. 2023, arXiv 2301.11706); 0.1.",
    )
    masked_loss: bool = Field(
        False,
        title="Masks",
        description="Learn what a mask shows: white in name.mask.png beside name.png, or opaque pixels of name.png.",
    )
    unmasked_weight: Share = Field(0.1, title="Outside the mask", description="Loss weight outside the mask.")

    @model_validator(mode="after")
    def _first_before_last(self) -> "ObjectiveConfig":
        if self.min_timestep > self.max_timestep:
            raise Conflict("min_timestep", _("is above max_timestep"), 0)
        return self
