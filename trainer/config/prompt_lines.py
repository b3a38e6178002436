"""Preview prompts that end with settings of their own, as in sd-scripts: `a red fox --w 768 --d 7 --n blurry`.

The flags are those of `line_to_prompt_dict` in library/train_util.py of sd-scripts at commit 48d368f; `--strength`, of
the adapter, is Limner's own.
"""

import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainer.config.picture import PictureConfig
from trainer.errors import UserError

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


@dataclass(frozen=True)
class PromptLine:
    """A prompt, and what its line says about the image by the names of `PictureConfig`, and the adapter's strength."""

    prompt: str
    settings: dict[str, Any]
    strength: float | None = None


def parse(line: str) -> PromptLine:
    """Read a preview prompt with its flags.

    Raises:
        UserError: a flag is unknown, has no value, or one out of bounds.
    """
    prompt, flags = split(line)
    found: dict[str, Any] = {}
    for flag, text in flags:
        if flag not in FLAGS:
            known = ", ".join(f"--{name}" for name in FLAGS)
            raise UserError(
                "A preview prompt has the unknown flag --{flag}.", "Known are {known}.", flag=flag, known=known
            )
        name, kind = FLAGS[flag]
        try:
            found[name] = kind(text)
        except ValueError:
            raise _wrong(flag, text) from None
        if not text:
            raise _wrong(flag, text)
    strength = found.pop("strength", None)
    if strength is not None and not 0 <= strength <= MAX_STRENGTH:
        raise _wrong("strength", str(strength))
    for side in ("width", "height"):  # as sd-scripts rounds them
        if side in found:
            found[side] = max(64, found[side] // 8 * 8)
    try:
        PictureConfig.model_validate({"out": "x", **found})
    except ValidationError as error:
        names = {name: flag for flag, (name, _kind) in FLAGS.items()}
        name = str(error.errors()[0]["loc"][0])
        raise _wrong(names[name], str(found[name])) from None
    return PromptLine(prompt, found, strength)


def split(line: str) -> tuple[str, list[tuple[str, str]]]:
    """Split a line into what precedes its flags, and each flag with its text, all without outer white space."""
    start, *rest = FLAG.split(f" {line}")
    return start.strip(), [(flag, text.strip()) for flag, text in zip(rest[::2], rest[1::2], strict=True)]


def without_flags(text: str) -> str:
    """Return a caption as a prompt: nothing in it is taken as a flag."""
    return FLAG.sub(" ", f" {text}").strip()


def _wrong(flag: str, text: str) -> UserError:
    return UserError("{text!r} is no value for --{flag} of a preview prompt.", "Correct it.", text=text, flag=flag)
