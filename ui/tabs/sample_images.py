"""Pictures made while trying out: what is asked for, where they lie, how they are shown, and what they tell.

A picture's name follows from all that it depends on, so that the same one is never painted twice.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from trainer import config as configs
from trainer.config import PictureConfig
from trainer.errors import UserError
from trainer.i18n import say
from ui.server import media

KEPT = 200
SHOWN = 12  # of those made last
TEXT = "limner"  # the chunk of a PNG's text that says what made it; `trainer.sampling.png_info` writes it
_SECRET = secrets.token_bytes(16)  # makes the names unguessable


def request(*, base: str, adapters: Sequence[tuple[Path, float]], **settings: Any) -> PictureConfig:  # noqa: ANN401
    """A checked request.

    Raises:
        UserError: a value out of bounds, each named.
    """
    for key in ("seed", "steps", "width", "height"):
        if isinstance(settings.get(key), float) and settings[key].is_integer():
            settings[key] = int(settings[key])
    used = [(file, strength) for file, strength in adapters if strength]
    named = tuple((str(file), strength) for file, strength in used)
    picture = configs.check(PictureConfig, {"base": base, "adapters": named, "out": "x", **settings})
    written = [file.stat().st_mtime_ns for file, _ in used]
    name = hashlib.sha256(_SECRET + f"{written}{picture.model_dump_json()}".encode()).hexdigest()[:32]
    return picture.model_copy(update={"out": str(media.pictures() / f"{name}.png")})


def size(text: str) -> tuple[int, int]:
    """Width and height of "512 x 768"; zeros, the base's own, for an empty text.

    Raises:
        UserError: it is no size.
    """
    if not text.strip():
        return 0, 0
    width, _, height = text.lower().partition("x")
    if not (width.strip().isdecimal() and height.strip().isdecimal()):
        raise UserError("{size!r} is no size.", "Write it as 512 x 768, or leave it empty.", size=text.strip())
    return int(width), int(height)


def prune() -> None:
    """Keep the newest pictures only."""
    for old in _newest()[KEPT:]:
        old.unlink(missing_ok=True)


def _newest() -> list[Path]:
    made = [(path.stat().st_mtime_ns, path) for path in media.pictures().glob("*.png")]
    return [path for _, path in sorted(made, reverse=True)]


# How they are shown ---------------------------------------------------------------------------------------------


def figure(caption: str, file: str, *, strength: float, small: bool, note: str = "", waiting: bool = False) -> str:
    """One picture, or the place where it will be, with its caption; `note` lies over it while it is being painted."""
    link = f"/media/picture/{file}"
    look = "pixels" if small else ""
    told = escape(say("Picture, {caption}", caption=caption))
    image = f"<img class='{look}' src='{link}' alt='{told}'>" if file else "<div class='blank'></div>"
    cover = f"<span class='cover' role='status'>{escape(note)}</span>" if note else ""
    name = caption.replace(",", "").replace(" ", "-")
    save = f" <a href='{link}' download='{escape(name)}.png'>{say('save')}</a>" if file and not waiting else ""
    return (
        f"<figure class='picture{' waiting' if waiting else ''}' data-strength='{strength:g}'>{image}{cover}"
        f"<figcaption>{escape(caption)}{save}</figcaption></figure>"
    )


def slider(first: str, second: str, *, small: bool) -> str:
    """Two pictures over each other, with a slider that uncovers the second from the left."""
    look = "pixels" if small else ""
    label = escape(say("How much of the picture with the adapter shows"))
    without, beside = escape(say("Without")), escape(say("With the adapter"))
    return (
        f"<div class='uncover' style='--cut:50%'><img class='{look}' src='/media/picture/{first}' alt='{without}'>"
        f"<img class='{look} over' src='/media/picture/{second}' alt='{beside}'>"
        f"<input type='range' min='0' max='100' value='50' aria-label='{label}'></div>"
    )


def history() -> str:
    """The pictures made last, the newest first."""
    row = []
    for path in _newest()[:SHOWN]:
        told = settings_of(path) or {}
        seed = say("seed {seed}", seed=told.get("seed", "?"))
        caption = f"{told.get('prompt', '')} · {seed}, {_adapters(told)}"
        link = f"/media/picture/{path.name}"
        row.append(
            f"<figure><a href='{link}' target='_blank' data-caption='{escape(caption)}'>"
            f"<img loading='lazy' src='{link}' alt='{escape(caption)}'></a></figure>"
        )
    return f"<h2>{say('Made last')}</h2><div class='strip' tabindex='0'>{''.join(row)}</div>" if row else ""


def _adapters(told: dict[str, Any]) -> str:
    named = [f"{name} {strength:g}" for name, strength in told.get("adapters", [])]
    return ", ".join(named) or say("no adapter")


# What they tell -------------------------------------------------------------------------------------------------


def settings_of(path: Path) -> dict[str, Any] | None:
    """Read what made an image from its file; None if it was not made here, or is not an image."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            told = json.loads(getattr(image, "text", {}).get(TEXT, ""))
        named = [(str(name), float(strength)) for name, strength in told["adapters"]]
        picture = configs.check(PictureConfig, {**told, "adapters": named, "out": "x"})
    except (OSError, ValueError, KeyError, TypeError, UnidentifiedImageError, SyntaxError, UserError):
        return None
    return picture.model_dump(exclude={"out"})
