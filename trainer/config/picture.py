"""Settings of one image to generate, for the sampler and `limner sample`."""

from typing import Literal

from pydantic import Field

from trainer.base_models import MICRO
from trainer.base_models.spec import MAX_CLIP_SKIP, PredictionType
from trainer.schema import Section


class PictureConfig(Section):
    """One image to generate, for the sampler and `limner sample`."""

    base: str = Field(MICRO, min_length=1, max_length=1000, description="As model.base of a run.")
    revision: str = Field("", max_length=100, description="As model.revision of a run.")
    objective: Literal["auto", PredictionType] = Field("auto", description="As model.prediction_type of a run.")
    vae: str = Field("", max_length=1000, description="As model.vae of a run.")
    clip_skip: int = Field(1, ge=1, le=MAX_CLIP_SKIP, description="As model.clip_skip of a run.")
    adapters: tuple[tuple[str, float], ...] = Field(
        (), max_length=16, description="Adapter files, each with its strength."
    )
    prompt: str = Field("", max_length=4000, description="What to show.")
    negative: str = Field("", max_length=4000, description="What not to show.")
    seed: int = Field(1, ge=0, le=2**31 - 1, description="Seed of the initial noise.")
    steps: int = Field(25, ge=1, le=200, description="Denoising steps.")
    guidance: float = Field(7.5, ge=1, le=30, description="How closely the image follows the prompt.")
    width: int = Field(0, ge=0, le=2048, multiple_of=8, description="Pixels; 0 = as the base model was trained.")
    height: int = Field(0, ge=0, le=2048, multiple_of=8, description="Pixels; 0 = as the base model was trained.")
    out: str = Field(min_length=1, max_length=1000, description="PNG file to write.")
