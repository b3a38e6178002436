"""Settings of one image to generate, for the sampler and `limner sample`."""

from typing import Literal

from pydantic import Field

from trainer.base_models import MICRO
from trainer.schema import Section


class PictureConfig(Section):
    """One image to generate, for the sampler and `limner sample`."""

    base: str = Field(MICRO, min_length=1, max_length=1000, description="As in the base model's setting.")
    revision: str = Field("", max_length=100, description="As in the base model's setting.")
    objective: Literal["auto", "epsilon", "v_prediction"] = Field("auto", description="As in the base model's setting.")
    adapters: tuple[tuple[str, float], ...] = Field(
        (), max_length=16, description="Adapter files, each with its strength."
    )
    prompt: str = Field("", max_length=4000, description="What to show.")
    negative: str = Field("", max_length=4000, description="What not to show.")
    seed: int = Field(1, ge=0, le=2**31 - 1, description="Of the noise that the picture begins with.")
    steps: int = Field(25, ge=1, le=200, description="Denoising steps.")
    guidance: float = Field(7.5, ge=1, le=30, description="How closely the picture follows the prompt.")
    width: int = Field(0, ge=0, le=2048, multiple_of=8, description="Pixels; 0 = what the base was trained on.")
    height: int = Field(0, ge=0, le=2048, multiple_of=8, description="Pixels; 0 = what the base was trained on.")
    out: str = Field(min_length=1, max_length=1000, description="PNG file to write.")
