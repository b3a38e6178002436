"""How an adapter is taught: the sections of a run's settings that say what its loop does. Torch-free."""

from typing import Literal

from pydantic import Field
from pydantic.config import JsonDict

from trainer.schema import Section

BASIC: JsonDict = {"level": "basic"}


class TrainingConfig(Section):
    """The loop."""

    steps: int = Field(
        0, ge=0, le=1_000_000, title="Steps", json_schema_extra=BASIC,
        description="Number of optimizer steps; 0 = from the number of pictures (see exposures).",
    )  # fmt: skip
    exposures: int = Field(
        240, ge=1, le=100_000, title="Exposures",
        description="When steps is 0: pictures seen in all, as a factor on the square root of their number.",
    )  # fmt: skip
    batch_size: int = Field(4, ge=1, le=256, title="Batch size", description="Pictures in one pass.")
    accumulation: int = Field(1, ge=1, le=256, title="Accumulation", description="Passes that make one step.")
    resolution: int = Field(
        512,
        ge=64,
        le=2048,
        multiple_of=64,
        title="Resolution",
        description="Side in pixels of a square with a picture's area.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        title="Precision",
        description="Of the frozen base; auto is bf16 on a GPU that has it and fp32 on a CPU.",
    )
    clip: float = Field(1.0, ge=0, le=1000, title="Clipping", description="Largest length of the gradient; 0 = off.")
    min_snr_gamma: float = Field(
        0.0, ge=0, le=100, title="Min-SNR gamma",
        description="Weight of the loss by noise level (Hang et al. 2023, arXiv 2303.09556); 0 = off, 5 is usual.",
    )  # fmt: skip
    caption_dropout: float = Field(
        0.0, ge=0, le=1, title="Caption dropout", description="Share of the captions that are left out at random."
    )
    flip: bool = Field(
        False, title="Mirror", description="Also show each picture mirrored; not for faces with a parting or text."
    )
    text_encoder: bool = Field(
        False,
        title="Train the text encoder",
        description="Also adapt the attention of the text encoder; slower, seldom needed.",
    )
    text_encoder_factor: float = Field(
        0.5, gt=0, le=10, title="Text encoder's rate", description="Its learning rate as a factor on the learning rate."
    )


class PreservationConfig(Section):
    """Keeps the base as it is where the trigger is absent, so that the trigger is a switch.

    Some pictures of a batch are seen once more with the trigger taken out of their caption, or with another prompt;
    there the adapter has to predict what the base alone predicts for the same noisy picture.
    """

    share: float = Field(
        0.0, ge=0, le=1, title="Preservation",
        description="Share of the pictures that are seen again without the trigger, to stay as the base draws them.",
    )  # fmt: skip
    weight: float = Field(
        4.0, gt=0, le=1000, title="Preservation weight", description="Weight of such a picture in the loss."
    )
    others: float = Field(
        0.25, ge=0, le=1, title="Other prompts", description="Share of them that get one of the prompts below instead."
    )
    prompts: tuple[str, ...] = Field(
        ("",), max_length=200, title="Prompts to preserve", description="One a line; what else the base should keep."
    )
