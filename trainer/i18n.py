"""Translate messages into the user's language: English, or another that has a catalog in `languages`.

The environment names it by gettext's rules (LANGUAGE, LC_ALL, LC_MESSAGES, LANG), for this process and the workers that
it starts. Messages are written in English where they are said; `scripts/words.py` collects them. What programs read
(names of settings, events, metadata of files) is in no catalogue.
"""

import gettext
from pathlib import Path

LANGUAGES = Path(__file__).parent / "languages"
# English has a catalogue too, an empty one, or who asks for it before others would not get it.
_found = gettext.find("limner", LANGUAGES)
_catalogue = gettext.NullTranslations()
if _found:
    with open(_found, "rb") as _file:
        _catalogue = gettext.GNUTranslations(_file)
# Invisible letters inside words and emoji, which Persian and a family of four need.
JOINERS = "\u200c\u200d"
LANGUAGE = _catalogue.info().get("language", "en")


def say(text: str, /, **values: object) -> str:
    """A text in the language of this process. With values it is a template, which they fill."""
    said = _catalogue.gettext(text) if text else ""  # the empty text is where a catalogue keeps its header
    return said.format(**_quoted(values)) if values else said


def count(one: str, many: str, n: int, /, **values: object) -> str:
    """The template for a number of things, {n}, in the form that the language has for it, filled."""
    return _catalogue.ngettext(one, many, n).format(n=n, **_quoted(values))


class _Quoted(str):
    """Text that `!r` quotes as people wrote it, backslashes too; only what would control a terminal is escaped."""

    __slots__ = ()

    def __repr__(self) -> str:
        letters = (c if c.isprintable() or c in JOINERS else c.encode("unicode_escape").decode() for c in self)
        return f"'{''.join(letters)}'"


def _quoted(values: dict[str, object]) -> dict[str, object]:
    return {name: _Quoted(value) if type(value) is str else value for name, value in values.items()}
