"""Settings of previews: images that are generated during training to show its progress."""

from pydantic import Field, field_validator

from trainer.config.prompt_lines import check_lines, parse_prompt_line
from trainer.schema import HubPath, Section


class PreviewConfig(Section):
    """Images generated during training to show its progress."""

    prompts: tuple[str, ...] = Field(
        (),
        max_length=16,
        title="Preview prompts",
        description="One per line; none = three captions of the dataset. A line may end with --w and --h (size), "
        "--d (seed), --s (steps), --l (guidance), --n (negative prompt) and --strength.",
    )
    negative_prompt: str = Field(
        "",
        max_length=2000,
        title="Negative prompt",
        description="What the previews should not show.",
    )
    every: int = Field(100, ge=0, le=1_000_000, title="Preview every", description="Steps between previews; 0 = none.")
    at_start: bool = Field(
        True, title="Preview at the start", description="Also before the first step, to compare with the base model."
    )
    base: HubPath = Field(
        "",
        max_length=1000,
        title="Preview model",
        description="Another model of the base model's family, such as the distilled one that the adapter is for. Only "
        "previews are generated with it, and it waits in main memory meanwhile. Empty = the base model.",
    )
    adapter: HubPath = Field(
        "",
        max_length=1000,
        title="Few-step adapter",
        description="An adapter file with which the base model generates in few steps (Lightning, Hyper-SD, DMD2, "
        "LCM), or its name on the hub. Only previews use it: set their steps and guidance to its own.",
    )
    adapter_strength: float = Field(1.0, ge=0, le=2, title="Few-step strength", description="Of the few-step adapter.")
    strength: float = Field(1.0, ge=0, le=2, title="Strength", description="Of the adapter in previews.")
    guidance: float = Field(
        7.5,
        ge=1,
        le=30,
        title="Guidance",
        description="How closely previews follow the prompt (Ho & Salimans 2022).",
    )
    steps: int = Field(25, ge=1, le=200, title="Sampling steps", description="Denoising steps of a preview.")
    seed: int = Field(
        1,
        ge=0,
        le=2**31 - 1,
        title="Preview seed",
        description="The same at every step, to make previews comparable.",
    )

    @field_validator("prompts")
    @classmethod
    def _has_known_flags(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        check_lines(parse_prompt_line, prompts)
        return prompts
