"""HTML of the page. It is written in the templates of this folder, which escape every value by themselves.

Python hands over values, never markup: `render` and `rich_text` are the only places that call a text markup. In a
template, `_` and `ngettext` give plain text, as in Python, and `rich_text` gives a message with emphasis. A line break
between two tags is there for the reader alone.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup

from trainer.i18n import _, duration, file_size, ngettext, quoted

HERE = Path(__file__).parent
Render = Callable[..., Markup]


@dataclass(frozen=True)
class RichText:
    """A message of the catalogs that may contain tags, and the values in it, which are escaped."""

    message: str
    values: dict[str, object]

    def __html__(self) -> str:
        """Return it as HTML, in the language of the page; templates and `Markup` call this."""
        text = Markup(_(self.message))
        return text.format(**quoted(self.values)) if self.values else text


def rich_text(message: str, /, **values: object) -> RichText:
    """Return a message with tags, such as "<b>Resume</b> continues from step {step}." It is written out in the call."""
    return RichText(message, values)


class _Lines(Extension):
    """Joins tags that stand on lines of their own: between inline elements, a line break would be a space."""

    BREAK = re.compile(r"(?<=[>}])\s*\n\s*(?=[<{])")

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Return the source of a template as it is compiled."""
        del name, filename
        return self.BREAK.sub("", source.strip())


def renderer(folder: Path) -> Render:
    """Return `render` for the templates of a folder, which may use those of the page, too."""
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        extensions=[_Lines],
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
    )
    environment.globals |= {"_": _, "ngettext": ngettext, "rich_text": rich_text}
    environment.filters |= {"duration": duration, "file_size": file_size}

    def render(name: str, /, **values: object) -> Markup:
        """Return the HTML of a template, such as "queue.html", filled with values.

        Raises:
            jinja2.UndefinedError: the template needs a value that is not there.
        """
        return Markup(environment.get_template(name).render(values))

    return render


render = renderer(HERE)
