"""Scripts of the page, with their messages in its language.

Text between [[ and ]] in these files is a message, as in `trainer.i18n._`.
"""

import json
import re
from pathlib import Path

from trainer.i18n import _

STATIC = Path(__file__).parent.parent / "static"
MESSAGE = re.compile(r"\[\[(.+?)\]\]", re.DOTALL)


def read(name: str) -> str:
    """Return a script of ui/static, ready for the browser."""
    text = (STATIC / name).read_text(encoding="utf-8")
    return MESSAGE.sub(lambda match: json.dumps(_(plain(match[1])))[1:-1], text)


def plain(message: str) -> str:
    """Return a message without the line breaks that it has in its file."""
    return " ".join(message.split())
