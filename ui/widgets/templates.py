"""The page's own HTML and JavaScript, with their words in the language of the page.

What stands between [[ and ]] in these files is a message, as in `trainer.i18n.say`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from trainer.i18n import say

STATIC = Path(__file__).parent.parent / "static"
MESSAGE = re.compile(r"\[\[(.+?)\]\]", re.DOTALL)
# A message may hold tags, but nothing that ends the quotes it stands in.
_FITTED: dict[str, Callable[[str], str]] = {
    ".html": lambda text: text.replace('"', "&quot;"),
    ".js": lambda text: json.dumps(text)[1:-1],
}


def read(name: str) -> str:
    """A file of ui/static, ready for the browser."""
    fitted = _FITTED[Path(name).suffix]
    text = (STATIC / name).read_text(encoding="utf-8")
    return MESSAGE.sub(lambda found: fitted(say(plain(found[1]))), text)


def plain(message: str) -> str:
    """A message of a file without the line breaks that it has there."""
    return " ".join(message.split())
