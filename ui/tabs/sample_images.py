"""Sample images of the Try out tab: their requests, files and HTML, and the settings stored in them.

The name of an image follows from everything that it depends on, so that the same image is never generated twice.
"""

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainer import config as configs
from trainer import foreign_text, paths
from trainer.base_models.versions import versions
from trainer.config import PictureConfig
from trainer.errors import UserError
from trainer.i18n import _
from trainer.sampling import png_info
from ui.tabs import comparison
from ui.tabs.comparison import Cell

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
        facts, done = self.facts, " done"
        if busy is not None:
            facts += ". " + _("Image {number} of {all}.", number=busy + 1, all=len(self.cells))
            done = ""
        elif self.view == "slide" and all(self.files):
            return f"<div class='pictures count-1 done'>{self._slider()}</div><p class='quiet'>{escape(facts)}</p>"
        figures = []
        for number, (cell, file) in enumerate(zip(self.cells, self.files, strict=True)):
            cover = note if number == busy else ""
            figures.append(self._figure(cell, file, cover, waiting=busy is not None and number >= busy))
        columns = comparison.columns(self.view, self.cells)
        if self.view == "grid":
            table = self._table(figures, columns)
            return f"<div class='pictures table{done}'>{table}</div><p class='quiet'>{escape(facts)}</p>"
        return (
            f"<div class='pictures count-{columns}{done}'>{''.join(figures)}</div><p class='quiet'>{escape(facts)}</p>"
        )

    def _table(self, figures: Sequence[str], columns: int) -> str:
        """Render the images as a table with labels at its axes, and the button that saves it once it is complete."""
        heads = "".join(f"<th scope='col'>{escape(cell.column)}</th>" for cell in self.cells[:columns])
        lines = []
        for start in range(0, len(figures), columns):
            row = "".join(f"<td>{figure}</td>" for figure in figures[start : start + columns])
            lines.append(f"<tr><th scope='row'><span>{escape(self.cells[start].row)}</span></th>{row}</tr>")
        corner, save = escape(_("Strength")), ""
        if all(self.files):
            save = f"<button type='button' class='act save-sheet'>{_('Save as one image')}</button>"
        return (
            f"<div class='previews' tabindex='0'><table><thead><tr><th scope='col'>{corner}</th>{heads}</tr></thead>"
            f"<tbody>{''.join(lines)}</tbody></table></div>{save}"
        )

    @property
    def _look(self) -> str:
        return "pixels" if self.small else ""

    def _figure(self, cell: Cell, file: str, note: str, *, waiting: bool) -> str:
        """Render one image with its caption, or a blank until it is there; `note` covers it while it is generated."""
        cover, save, state = "", "", " waiting" if waiting else ""
        image = "<div class='blank'></div>"
        if file:
            link, title = f"/media/picture/{file}", escape(_("Image, {caption}", caption=cell.caption))
            nearest = f" data-nearest='{link}/nearest/{quote(self.run)}'" if self.run else ""
            name = cell.caption.replace(",", "").replace(" ", "-")
            image = (
                f"<a href='{link}' target='_blank' data-caption='{escape(f'{cell.caption} · {self.facts}')}'{nearest} "
                f"data-file='{escape(name)}.png'><img class='{self._look}' src='{link}' alt='{title}'></a>"
            )
            if not waiting:
                save = f" <a href='{link}' download='{escape(name)}.png'>{_('save')}</a>"
        if note:
            cover = f"<span class='cover' role='status'>{escape(note)}</span>"
        return (
            f"<figure class='picture{state}' data-strength='{cell.strength:g}'>{image}{cover}"
            f"<figcaption>{escape(cell.caption)}{save}</figcaption></figure>"
        )

    def _slider(self) -> str:
        """Render two images on top of each other, with a slider that uncovers the second from the left."""
        first, second = self.files
        label = escape(_("Share of the image with the adapter"))
        without, beside = escape(_("Without")), escape(_("With the adapter"))
        return (
            f"<div class='uncover' style='--cut:50%'>"
            f"<img class='{self._look}' src='/media/picture/{first}' alt='{without}'>"
            f"<img class='{self._look} over' src='/media/picture/{second}' alt='{beside}'>"
            f"<input type='range' min='0' max='100' value='50' aria-label='{label}'></div>"
        )


def recent() -> str:
    """Render the recent images, the newest first."""
    figures = []
    for path in _newest()[:SHOWN]:
        link, caption = f"/media/picture/{path.name}", escape(_caption(settings_of(path) or {}))
        figures.append(
            f"<figure><a href='{link}' target='_blank' data-caption='{caption}'>"
            f"<img loading='lazy' src='{link}' alt='{caption}'></a></figure>"
        )
    if not figures:
        return ""
    return f"<h2>{_('Recent images')}</h2><div class='strip' tabindex='0'>{''.join(figures)}</div>"


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
