"""Settings of the training loop. Torch-free."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from trainer.i18n import _
from trainer.schema import Conflict, Section, ShareBelow1

Resolution = Annotated[int, Field(ge=64, le=2048, multiple_of=64)]


class TrainingConfig(Section):
    """Settings of the training loop."""

    steps: int = Field(
        0,
        ge=0,
        le=1_000_000,
        title="Steps",
        description="Number of optimizer steps; 0 = from the number of images (see Exposures).",
    )
    exposures: int = Field(
        240,
        ge=1,
        le=100_000,
        title="Exposures",
        description="Training length when Steps is 0. Higher trains longer, and so do more images: by the square root "
        "of their number.",
    )
    batch_size: int = Field(
        4,
        ge=1,
        le=256,
        title="Batch size",
        description="Images per pass; a preset's learning rate is scaled by its square root, except with plain.",
    )
    gradient_accumulation: int = Field(1, ge=1, le=256, title="Accumulation", description="Passes per optimizer step.")
    resolution: int = Field(
        512,
        ge=64,
        le=2048,
        multiple_of=64,
        title="Resolution",
        description="Side in pixels of a square with the area of a training image.",
    )
    further_resolutions: tuple[Resolution, ...] = Field(
        (),
        max_length=7,
        title="Further resolutions",
        description="Lower ones, such as 768, 512: batches take turns between these and the resolution, so that the "
        "adapter learns each image at several sizes.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        title="Precision",
        description="Of the frozen base model; auto is bf16 where that is faster, else fp32; fp16 needs a GPU.",
    )
    devices: int = Field(
        0,
        ge=0,
        le=64,
        title="Devices",
        description="GPUs, or processes without a GPU, that share each batch; the adapter is the same. 0 = one, or all "
        "that cards names, or one per core without a GPU if the base model is small.",
    )
    cards: str = Field(
        "",
        max_length=200,
        title="Cards",
        description="Numbers of the GPUs to use, as nvidia-smi counts them, such as 0,2; if devices is less, any of "
        "them. Empty = any.",
    )
    memory: float = Field(
        0.0,
        ge=0,
        le=10_000,
        title="Memory",
        description="GB that the training may use; 0 = nearly all that is free.",
    )
    micro_batches: int = Field(
        0,
        ge=0,
        le=256,
        title="Micro-batches",
        description="Split each batch to save memory; the result is the same. 0 = use as few as fit.",
    )
    gradient_checkpointing: Literal["auto", "off", "feed-forward", "half", "transformers", "all"] = Field(
        "auto",
        title="Gradient checkpointing",
        description="Recompute activations instead of storing them: of feed-forward layers, of half the transformer "
        "blocks, of all of them, or of all blocks; each needs less memory, up to a third more time. auto = as few as "
        "needed.",
    )
    offload: Literal["auto", "off", "half", "all"] = Field(
        "auto",
        title="Offload",
        description="Keep the weights of half the denoiser's blocks, or of all, in main memory, and copy each to the "
        "GPU ahead of its use; slower, and all blocks are computed twice. auto = if nothing else is left.",
    )
    max_grad_norm: float = Field(1.0, ge=0, le=1000, title="Clipping", description="Maximum gradient norm; 0 = off.")
    text_encoder: bool = Field(
        False,
        title="Train the text encoder",
        description="So that it learns the trigger word, too. Takes more memory and time.",
    )
    text_encoder_lr_factor: float = Field(
        0.5,
        gt=0,
        le=10,
        title="Text encoder LR",
        description="Its learning rate, as a factor on the learning rate.",
    )
    ema_decay: ShareBelow1 = Field(
        0.0,
        title="EMA decay",
        description="Use a moving average of the weights, with this decay per step, for previews, checkpoints and the "
        "file; 0 = off.",
    )
    spike_threshold: float = Field(
        0.0,
        ge=0,
        le=1000,
        title="Instability guard",
        description="Restart at half the learning rate if an early gradient is this many times their median; 0 = off.",
    )

    @field_validator("cards", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        return str(value) if type(value) is int else value  # of one card, the number is text too

    @field_validator("cards")
    @classmethod
    def _are_numbers(cls, value: str) -> str:
        numbers = [number.strip() for number in value.split(",")] if value.strip() else []
        if not all(re.fullmatch("0|[1-9][0-9]{0,2}", number, re.ASCII) for number in numbers):
            raise ValueError(_("should be numbers of cards, such as 0,2"))
        if len(set(numbers)) < len(numbers):
            raise ValueError(_("names a card twice"))
        return ",".join(numbers)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The resolution and the further ones, which batches take turns with."""
        return (self.resolution, *self.further_resolutions)

    @property
    def card_numbers(self) -> tuple[str, ...]:
        """The numbers of the cards to choose from; () = any."""
        return tuple(self.cards.split(",")) if self.cards else ()

    @property
    def wanted_devices(self) -> int:
        """The number of devices that the settings ask for; 0 = they leave it open."""
        return self.devices or len(self.card_numbers)

    @model_validator(mode="after")
    def _there_are_enough_cards(self) -> "TrainingConfig":
        if self.cards and self.devices > len(self.card_numbers):
            reason = _("there are fewer than devices ({devices}); name more, or none", devices=self.devices)
            raise Conflict("cards", reason, "")
        return self

    @model_validator(mode="after")
    def _further_resolutions_are_lower(self) -> "TrainingConfig":
        lower = sorted({side for side in self.further_resolutions if side < self.resolution}, reverse=True)
        if len(lower) < len(self.further_resolutions):
            reason = _("each must be lower than the resolution, {side}, and named once", side=self.resolution)
            raise Conflict("further_resolutions", reason, lower)
        return self

    @model_validator(mode="after")
    def _waiting_blocks_are_computed_twice(self) -> "TrainingConfig":
        if self.offload in ("half", "all") and self.gradient_checkpointing not in ("auto", "all"):
            raise Conflict("offload", _("blocks whose weights wait are computed twice; set it to auto"), "auto")
        return self

    @model_validator(mode="after")
    def _batch_can_be_shared(self) -> "TrainingConfig":
        if max(1, self.wanted_devices) * max(1, self.micro_batches) > self.batch_size:
            name = "micro_batches" if self.micro_batches > 1 else "devices" if self.devices else "cards"
            fix = "" if name == "cards" else 0
            raise Conflict(name, _("too many for a batch of {size}; raise batch_size", size=self.batch_size), fix)
        return self
