"""Sample images of the Try out tab: their requests, files and HTML, and the settings stored in them.

The name of an image follows from everything that it depends on, so that the same image is never generated twice.
"""

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import config as configs
from trainer import foreign_text, paths
from trainer.base_models.versions import versions
from trainer.config import PictureConfig
from trainer.errors import UserError
from trainer.i18n import _
from trainer.sampling import png_info
from ui.tabs import comparison
from ui.tabs.comparison import Cell
from ui.templates import render

KEPT = 200
SHOWN = 12  # of the recent images
_SECRET = secrets.token_bytes(16)  # makes the names unguessable


def request(*, base: str, adapters: Sequence[tuple[Path, float]], **settings: object) -> PictureConfig:
    """Return a validated request for an image.

    Raises:
        UserError: a value is out of bounds.
    """
    used = [(file, strength) for file, strength in adapters if strength]
    named = tuple((str(file), strength) for file, strength in used)
    config = configs.check(PictureConfig, {"base": base, "adapters": named, "out": "x", **settings})
    files = [*versions(base, config.revision, config.vae), *(file.stat().st_mtime_ns for file, _ in used)]
    name = hashlib.sha256(_SECRET + f"{files}{config.model_dump_json()}".encode()).hexdigest()[:32]
    return config.model_copy(update={"out": str(paths.sample_images() / f"{name}.png")})


def size(text: str) -> tuple[int, int]:
    """Return width and height of "512 x 768"; zeros, for the size of the base model, if the text is empty.

    Raises:
        UserError: the text is not a size.
    """
    if not text.strip():
        return 0, 0
    width, _, height = text.lower().partition("x")
    if not (width.strip().isdecimal() and height.strip().isdecimal()):
        raise UserError("{size!r} is not a size.", "Write it as 512 x 768, or leave it empty.", size=text.strip())
    return int(width), int(height)


def prune() -> None:
    """Delete all but the newest images."""
    for path in _newest()[KEPT:]:
        with suppress(PermissionError):  # on Windows, while it is sent to a browser
            path.unlink(missing_ok=True)


def _newest() -> list[Path]:
    dated = [(path.stat().st_mtime_ns, path) for path in paths.sample_images().glob("*.png")]
    return [path for _, path in sorted(dated, reverse=True)]


# HTML -----------------------------------------------------------------------------------------------------------


@dataclass
class Sheet:
    """The images of a view, side by side. A file is "" until its image is there."""

    view: str
    cells: list[Cell]
    facts: str
    small: bool
    run: str = ""  # the run of the adapter
    files: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = self.files or [""] * len(self.cells)

    def html(self, *, busy: int | None = None, note: str = "") -> str:
        """Render the images; `busy` is the number of the one that is being generated, `note` its progress."""
        form = self.view if self.view == "grid" or (self.view == "slide" and busy is None and all(self.files)) else ""
        now = "" if busy is None else ". " + _("Image {number} of {all}.", number=busy + 1, all=len(self.cells))
        cells = [
            {
                "caption": cell.caption,
                "name": cell.caption.replace(",", "").replace(" ", "-"),
                "row": cell.row,
                "column": cell.column,
                "strength": f"{cell.strength:g}",
                "file": file,
                "waiting": busy is not None and number >= busy,
                "note": note if number == busy else "",
            }
            for number, (cell, file) in enumerate(zip(self.cells, self.files, strict=True))
        ]
        return render(
            "sheet.html",
            form=form,
            cells=cells,
            columns=comparison.columns(self.view, self.cells),
            done=busy is None,
            settings=self.facts,
            facts=self.facts + now,
            run=self.run,
            look="pixels" if self.small else "",
        )


def recent() -> str:
    """Render the recent images, the newest first."""
    images = [{"file": path.name, "caption": _caption(settings_of(path) or {})} for path in _newest()[:SHOWN]]
    return render("recent.html", images=images) if images else ""


def _caption(settings: dict[str, Any]) -> str:
    seed = _("seed {seed}", seed=settings.get("seed", "?"))
    adapters = [f"{name} {strength:g}" for name, strength in settings.get("adapters", [])]
    return f"{settings.get('prompt', '')} · {seed}, {', '.join(adapters) or _('no adapter')}"


# Settings in a file ---------------------------------------------------------------------------------------------


def settings_of(path: Path) -> dict[str, Any] | None:
    """Read the settings that an image was generated with from its file; None if it has none or is not an image."""
    try:
        stored = foreign_text.parse_json(png_info.read(path))
        adapters = [(str(name), float(strength)) for name, strength in stored["adapters"]]
        config = configs.check(PictureConfig, {**stored, "adapters": adapters, "out": "x"})
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    return config.model_dump(exclude={"out"})
