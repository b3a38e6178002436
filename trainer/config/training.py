"""Training config: the sections of a run's settings that the training loop reads. Torch-free."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic.config import JsonDict

from trainer.i18n import say
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
    batch_size: int = Field(
        4, ge=1, le=256, title="Batch size",
        description="Pictures in one pass; a preset's learning rate follows it by the square root.",
    )  # fmt: skip
    accumulation: int = Field(1, ge=1, le=256, title="Accumulation", description="Passes that make one step.")
    resolution: int = Field(
        512,
        ge=64,
        le=2048,
        multiple_of=64,
        title="Resolution",
        description="Side in pixels of a square with a picture's area.",
    )
    small_share: float = Field(
        0.0, ge=0, lt=1, title="Small at first",
        description="Share of the steps, from the first on, at three quarters of the resolution: faster, less fine.",
    )  # fmt: skip
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        title="Precision",
        description="Of the frozen base; auto is bf16 where the hardware computes in it, else fp32; fp16 needs a GPU.",
    )
    devices: int = Field(
        0, ge=0, le=64, title="Devices",
        description="GPUs, or processes where there is none, that share each batch; the adapter is the same; 0 = one, "
        "or without a GPU and with a small base as many as there are cores.",
    )  # fmt: skip
    memory: float = Field(
        0.0, ge=0, le=10_000, title="Memory", description="GB that the training may take; 0 = nearly all that is free."
    )
    parts: int = Field(
        0, ge=0, le=256, title="Parts",
        description="A batch is computed in so many parts, one after the other: less memory, the same adapter; 0 = as "
        "few as fit into memory, which is measured.",
    )  # fmt: skip
    gradient_checkpointing: Literal["auto", "off", "large", "all"] = Field(
        "auto", title="Gradient checkpointing",
        description="Compute the blocks at the largest sizes, or all, twice instead of keeping them: less memory, up "
        "to a third slower; auto only where a batch does not fit otherwise.",
    )  # fmt: skip
    clip: float = Field(1.0, ge=0, le=1000, title="Clipping", description="Largest length of the gradient; 0 = off.")
    text_encoder: bool = Field(
        False,
        title="Train the text encoder",
        description="Also adapt the attention of the text encoder, so that words learn too, above all the trigger "
        "word; it takes more memory and time.",
    )
    text_encoder_factor: float = Field(
        0.5, gt=0, le=10, title="Text encoder's rate", description="Its learning rate as a factor on the learning rate."
    )
    ema: float = Field(
        0.0, ge=0, lt=1, title="Averaging",
        description="Previews, checkpoints and the file show a running mean that keeps this share a step; 0 = off.",
    )  # fmt: skip
    guard: float = Field(
        0.0, ge=0, le=1000, title="Instability guard",
        description="Begin again at half the rate if an early gradient is this many times their median; 0 = off.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _each_part_has_a_picture(self) -> "TrainingConfig":
        if max(1, self.devices) * max(1, self.parts) > self.batch_size:
            name = "parts" if self.parts > 1 else "devices"
            raise ValueError(say(
                "{name}: a batch of {size} cannot be shared by so many; raise batch_size",
                name=name, size=self.batch_size,
            ))  # fmt: skip
        return self


class ObjectiveConfig(Section):
    """Settings of the objective: timesteps, loss type and loss weighting."""

    weighting: Literal["none", "min-snr", "debiased", "p2"] = Field(
        "none", title="Loss weight",
        description="By noise level: min-SNR (arXiv 2303.09556), debiased (2310.08442) or P2 (2204.00227).",
    )  # fmt: skip
    min_snr_gamma: float = Field(
        5.0,
        gt=0,
        le=100,
        title="Min-SNR gamma",
        description="Signal over noise above which min-SNR gives no more weight.",
    )
    p2_gamma: float = Field(1.0, gt=0, le=5, title="P2 gamma", description="How much P2 favours noisy pictures.")
    measure: Literal["squared", "huber", "scheduled-huber"] = Field(
        "squared", title="Error",
        description="Squared, or pseudo-Huber, which minds single large errors less (arXiv 2403.16728).",
    )  # fmt: skip
    huber: float = Field(
        0.1, gt=0, le=1, title="Huber c",
        description="Error above which Huber grows in a line; scheduled, it falls to this from 1 as noise grows.",
    )  # fmt: skip
    timesteps: Literal["uniform", "logit-normal"] = Field(
        "uniform", title="Timesteps",
        description="How noise levels are drawn: all alike, or mostly in the middle (Esser et al. 2024, 2403.03206).",
    )  # fmt: skip
    logit_mean: float = Field(
        0.0, ge=-4, le=4, title="Logit mean", description="Of logit-normal timesteps; above 0 is noisier."
    )
    logit_std: float = Field(1.0, gt=0, le=4, title="Logit spread", description="Of logit-normal timesteps.")
    first_timestep: int = Field(0, ge=0, le=999, title="First timestep", description="The least noise that is trained.")
    last_timestep: int = Field(999, ge=0, le=999, title="Last timestep", description="The most noise that is trained.")
    noise_offset: float = Field(
        0.0, ge=0, le=1, title="Noise offset", description="Noise that is the same over a whole channel; 0.03 to 0.1."
    )
    input_perturbation: float = Field(
        0.0, ge=0, le=1, title="Input perturbation",
        description="More noise in the input than is to be predicted (Ning et al. 2023, arXiv 2301.11706); 0.1.",
    )  # fmt: skip
    masked: bool = Field(
        False, title="Masks",
        description="Learn what a mask shows: white in name.mask.png beside name.png, or what is opaque in it.",
    )  # fmt: skip
    outside: float = Field(0.1, ge=0, le=1, title="Outside the mask", description="Weight of what the mask leaves out.")

    @model_validator(mode="after")
    def _first_before_last(self) -> "ObjectiveConfig":
        if self.first_timestep > self.last_timestep:
            raise ValueError(say("first_timestep: is after last_timestep"))
        return self


class CaptionsConfig(Section):
    """Settings of captions. All variants that can be drawn are encoded once, before the first step."""

    dropout: float = Field(
        0.0, ge=0, le=1, title="Caption dropout", description="Share of the captions that are left out at random."
    )
    trigger_only: float = Field(
        0.0, ge=0, le=1, title="Trigger alone",
        description="Share of the captions that are the trigger word alone, so that it takes up what all pictures have "
        "in common.",
    )  # fmt: skip
    alternatives: bool = Field(
        False, title="A caption a line", description="Each line of a caption file is a caption of its own."
    )
    shuffle: bool = Field(False, title="Shuffle tags", description="Put the parts between commas in other orders.")
    keep: int = Field(
        1, ge=0, le=100, title="Tags that stay", description="So many stay in front, such as the trigger."
    )
    orders: int = Field(8, ge=2, le=64, title="Orders", description="Orders of the tags for each caption.")
    chunks: int = Field(
        1, ge=1, le=3, title="Caption length",
        description="Times 75 tokens; each 75 are encoded by themselves. Previews show the first 75.",
    )  # fmt: skip


class PicturesConfig(Section):
    """Settings of image augmentation. All views of an image are encoded once, before the first step."""

    flip: bool = Field(
        False, title="Mirror", description="Also show each picture mirrored; not for faces with a parting or text."
    )
    crops: int = Field(0, ge=0, le=16, title="Crops", description="Random parts of each picture, beside the whole.")
    smallest_crop: float = Field(
        0.7, gt=0.1, le=1, title="Smallest crop", description="Side of a crop as a share of the picture's."
    )
    background: Literal["white", "black", "grey", "random"] = Field(
        "white", title="Background", description="Behind pictures that are transparent; random is of several colours."
    )
    backgrounds: int = Field(
        4, ge=2, le=32, title="Colours", description="Of random backgrounds, for each transparent picture."
    )


class PriorConfig(Section):
    """Pictures of the class that is not taught, so that it stays as it is: Ruiz et al. 2023, arXiv 2208.12242 (3.2)."""

    dataset: str = Field(
        "",
        max_length=1000,
        title="Prior pictures",
        description="Another data set, with captions that lack the trigger.",
    )
    share: float = Field(0.25, ge=0, le=0.9, title="Prior share", description="Share of the batches made of them.")
    weight: float = Field(1.0, gt=0, le=100, title="Prior weight", description="Weight of these batches in the loss.")


class PreservationConfig(Section):
    """Keeps the base as it is where the trigger is absent, so that the trigger is a switch.

    Some pictures of a batch are seen once more with the trigger taken out of their caption, or pictures that the base
    drew from other prompts; there the adapter has to predict what the base alone predicts for the same noisy picture.
    """

    share: float = Field(
        0.0, ge=0, le=1, title="Preservation",
        description="Share of the pictures that are seen again without the trigger, to stay as the base draws them.",
    )  # fmt: skip
    weight: float = Field(
        4.0, gt=0, le=1000, title="Preservation weight", description="Weight of such a picture in the loss."
    )
    others: float = Field(
        0.25,
        ge=0,
        le=1,
        title="Other prompts",
        description="Share of them that are pictures the base drew from the prompts below.",
    )
    prompts: tuple[str, ...] = Field(
        (), max_length=200, title="Prompts to preserve",
        description="One a line; what else the base should keep. An empty one makes guidance overdo what was learned.",
    )  # fmt: skip
