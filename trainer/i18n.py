"""Translate messages into the user's language: English, or another that has a catalog in `languages`.

The environment selects it by gettext's rules (LANGUAGE, LC_ALL, LC_MESSAGES, LANG), for this process and the workers
that it starts. Messages are written in English where they are used, and `scripts/translations.py` collects them. Text
for programs (names of settings, events, metadata of files) is in no catalog.
"""

import gettext
from pathlib import Path

LANGUAGES = Path(__file__).parent / "languages"
# English has a catalog too, an empty one, or users who prefer it to other languages would not get it.
_catalog_file = gettext.find("limner", LANGUAGES)
_catalog = gettext.NullTranslations()
if _catalog_file:
    with open(_catalog_file, "rb") as _file:
        _catalog = gettext.GNUTranslations(_file)
# Invisible letters inside words and emoji, which Persian and a family of four need.
JOINERS = "\u200c\u200d"
LANGUAGE = _catalog.info().get("language", "en")


def _(text: str, /, **values: object) -> str:
    """Return a text in the language of this process. With values it is a template, which they fill."""
    translated = _catalog.gettext(text) if text else ""  # the empty text is where a catalog keeps its header
    return translated.format(**quoted(values)) if values else translated


def ngettext(singular: str, plural: str, n: int, /, **values: object) -> str:
    """Return the template for a number of things, {n}, in the form that the language has for it, filled."""
    return _catalog.ngettext(singular, plural, n).format(n=n, **quoted(values))


def duration(count: float) -> str:
    """Return a duration as text, rounded."""
    if count < 5:
        return _("a few seconds")
    if count < 90:
        return _("{n} s", n=max(5, round(count / 5) * 5))
    if count < 90 * 60:
        return _("{n} min", n=round(count / 60))
    if count < 48 * 3600:
        return _("{n:.1f} h", n=count / 3600)
    return _("{n} days", n=round(count / 86400))


def file_size(count: int) -> str:
    """Return a number of bytes as text."""
    if count >= 2**30:
        return f"{count / 2**30:.1f} GB"
    if count >= 2**20:
        return f"{count / 2**20:.1f} MB"
    return f"{max(1, round(count / 1024))} KB"


class _Quoted(str):
    """Text that `!r` quotes as the user wrote it, backslashes too; only what would control a terminal is escaped."""

    __slots__ = ()

    def __repr__(self) -> str:
        letters = (c if c.isprintable() or c in JOINERS else c.encode("unicode_escape").decode() for c in self)
        return f"'{''.join(letters)}'"


def quoted(values: dict[str, object]) -> dict[str, object]:
    """Return the values of a message, of which `!r` quotes texts as the user wrote them."""
    return {name: _Quoted(value) if type(value) is str else value for name, value in values.items()}
