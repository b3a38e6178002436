"""The list of runs that wait for the device, with buttons that put them in another order (see queue.js)."""

from collections.abc import Sequence
from html import escape
from pathlib import PurePath

from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import Run
from ui.state.run_watcher import label


def render(waiting: Sequence[Run]) -> str:
    """Render the waiting runs in their order; "" if there are none."""
    if not waiting:
        return ""
    rows = "".join(_row(run, place, len(waiting)) for place, run in enumerate(waiting, 1))
    title = escape(_("Waiting for the device"))
    return f"<section class='queue' aria-label='{title}'><h2>{title}</h2><ol>{rows}</ol></section>"


def _row(run: Run, place: int, count: int) -> str:
    name = label(run)
    hold = ("release", _("Release")) if run.on_hold else ("hold", _("Hold"))
    buttons = (
        _button("move", "\u2191", _("Move {name} up", name=name), place=place - 1 if place > 1 else 0),
        _button("move", "\u2193", _("Move {name} down", name=name), place=place + 1 if place < count else 0),
        _button(*hold, f"{hold[1]}: {name}", place=place),
    )
    state = f" <span class='pill waiting'>{escape(_('On hold'))}</span>" if run.on_hold else ""
    return (
        f"<li data-run='{escape(run.id)}'>"
        f"<span class='what'>{escape(name)}{state} <span class='quiet'>{escape(_base(run))}</span></span>"
        f"<span class='acts'>{''.join(buttons)}</span></li>"
    )


def _button(act: str, text: str, title: str, place: int) -> str:
    """Render a button; a move to place 0 is not possible, but its button stays, so that the others do not move."""
    off = "" if place else " disabled"
    return (
        f"<button type='button' class='act' data-act='{act}' data-place='{place}' title='{escape(title)}' "
        f"aria-label='{escape(title)}'{off}>{escape(text)}</button>"
    )


def _base(run: Run) -> str:
    try:
        return PurePath(run.config().model.base).name
    except (UserError, OSError):  # its settings cannot be read
        return ""
