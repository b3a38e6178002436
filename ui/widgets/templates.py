"""HTML and JavaScript of the page, with their messages in its language.

Text between [[ and ]] in these files is a message, as in `trainer.i18n._`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from trainer.i18n import _

STATIC = Path(__file__).parent.parent / "static"
MESSAGE = re.compile(r"\[\[(.+?)\]\]", re.DOTALL)
# A message may contain tags, but nothing that ends the quotes around it.
_ESCAPES: dict[str, Callable[[str], str]] = {
    ".html": lambda text: text.replace('"', "&quot;"),
    ".js": lambda text: json.dumps(text)[1:-1],
}


def read(name: str) -> str:
    """Return a file of ui/static, ready for the browser."""
    escape = _ESCAPES[Path(name).suffix]
    text = (STATIC / name).read_text(encoding="utf-8")
    return MESSAGE.sub(lambda match: escape(_(plain(match[1]))), text)


def plain(message: str) -> str:
    """Return a message without the line breaks that it has in its file."""
    return " ".join(message.split())
