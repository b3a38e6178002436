"""One image to generate, and prompts that end with its settings, as in sd-scripts: `a red fox --w 768 --d 7 --n old`.

The flags are those of `line_to_prompt_dict` in library/train_util.py of sd-scripts at commit 48d368f; `--strength`, of
the adapter, is Limner's own.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from trainer.base_models import MICRO
from trainer.base_models.spec import MAX_CLIP_SKIP, PredictionType
from trainer.errors import UserError
from trainer.schema import Section

FLAG = re.compile(r"\s--([a-z]+)(?=\s|$)")
# Flag: setting of `PictureConfig`, and how its text is read.
FLAGS: dict[str, tuple[str, type]] = {
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "s": ("steps", int),
    "l": ("guidance", float),
    "n": ("negative", str),
    "strength": ("strength", float),
}
MAX_STRENGTH = 2.0


class PictureConfig(Section):
    """Settings of one image, for the sampler and `limner sample`."""

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


@dataclass(frozen=True)
class PromptLine:
    """A prompt, and what its line says about the image by the names of `PictureConfig`, and the adapter's strength."""

    prompt: str
    settings: dict[str, Any]
    strength: float | None = None


def parse_prompt_line(line: str) -> PromptLine:
    """Read a preview prompt with its flags.

    Raises:
        UserError: a flag is unknown, has no value, or one out of bounds.
    """
    prompt, flags = split(line)
    settings: dict[str, Any] = {}
    for flag, text in flags:
        if flag not in FLAGS:
            known = ", ".join(f"--{name}" for name in FLAGS)
            raise UserError(
                "A preview prompt has the unknown flag --{flag}.", "Known are {known}.", flag=flag, known=known
            )
        name, kind = FLAGS[flag]
        try:
            settings[name] = kind(text)
        except ValueError:
            raise _wrong(flag, text) from None
        if not text:
            raise _wrong(flag, text)
    strength = settings.pop("strength", None)
    if strength is not None and not 0 <= strength <= MAX_STRENGTH:
        raise _wrong("strength", str(strength))
    for side in ("width", "height"):  # as sd-scripts rounds them
        if side in settings:
            settings[side] = max(64, settings[side] // 8 * 8)
    try:
        PictureConfig.model_validate({"out": "x", **settings})
    except ValidationError as error:
        names = {name: flag for flag, (name, _kind) in FLAGS.items()}
        name = str(error.errors()[0]["loc"][0])
        raise _wrong(names[name], str(settings[name])) from None
    return PromptLine(prompt, settings, strength)


def split(line: str) -> tuple[str, list[tuple[str, str]]]:
    """Split a line into what precedes its flags, and each flag with its text, all without outer white space."""
    start, *rest = FLAG.split(f" {line}")
    return start.strip(), [(flag, text.strip()) for flag, text in zip(rest[::2], rest[1::2], strict=True)]


def without_flags(text: str) -> str:
    """Return a caption as a prompt: nothing in it is taken as a flag."""
    return FLAG.sub(" ", f" {text}").strip()


def _wrong(flag: str, text: str) -> UserError:
    return UserError("{text!r} is no value for --{flag} of a preview prompt.", "Correct it.", text=text, flag=flag)


def check_lines(parse: Callable[[str], object], lines: Iterable[str]) -> None:
    """Check that a function can parse each line of a setting.

    Raises:
        ValueError: it cannot; it says why.
    """
    for line in lines:
        try:
            parse(line)
        except UserError as error:
            raise ValueError(f"{error.message} {error.remedy}") from None
