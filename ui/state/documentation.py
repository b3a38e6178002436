"""Documentation, as the page serves it: files by name, Markdown as HTML, and the place that explains a message."""

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from trainer import paths
from trainer.i18n import _
from ui import templates

# A wheel holds a copy of what stands beside the packages in a clone.
ROOT = paths.CODE if (paths.CODE / "docs").is_dir() else Path(__file__).parent.parent / "documentation"
ADDRESS = "/help/"
START = "docs/README.md"
PICTURES = "trainer/base_models/micro/pictures/*.png"  # which pages of the documentation show
MESSAGES = "docs/troubleshooting.md"  # its quotes are messages, explained below the heading above them
MEDIA_TYPES = {
    "": "text/plain",
    ".md": "text/html",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ipynb": "application/x-ipynb+json",
}
GENERATED = re.compile(r"<!--.*?-->\n?", re.DOTALL)  # code of generated tables


def find(name: str) -> Path | None:
    """Return a file of the documentation by its path from the top, such as `docs/captions.md`; None if it has none."""
    return _files().get(name)


@cache
def _files() -> dict[str, Path]:
    files = [*ROOT.glob("*.md"), ROOT / "NOTICE", *(ROOT / "docs").rglob("*.*")]
    named = {path.relative_to(ROOT).as_posix(): path for path in files}
    return named | {path.relative_to(paths.CODE).as_posix(): path for path in paths.CODE.glob(PICTURES)}


def render(path: Path) -> Markup:
    """Return a page as HTML. Headings have the anchors that they have on GitHub; links to code are plain text.

    The Markdown is our own, and tags in it are shown as text.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(GENERATED.sub("", path.read_text(encoding="utf-8")))
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            before.attrSet("id", anchor(token.content))
        for part in token.children or []:
            if part.type == "link_open" and not _leads_somewhere(path, str(part.attrs["href"])):
                del part.attrs["href"]
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))


def _leads_somewhere(page: Path, target: str) -> bool:
    file = target.partition("#")[0]
    if not file or "://" in file:
        return True
    path = (page.parent / file).resolve()
    return path.is_relative_to(ROOT) and find(path.relative_to(ROOT).as_posix()) is not None


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def link(message: str) -> str:
    """Return a link to what explains a message of Limner, in English or as its template; "" if nothing does."""
    for pattern, place in _explained():
        if pattern.search(message):
            address = f"{ADDRESS}{MESSAGES}#{place}"
            return templates.render("link.html", address=address, text=_("What helps"))
    return ""


def messages() -> Iterator[tuple[list[str], str]]:
    """Yield each message that is explained, in the parts between what differs, and its anchor."""
    place = ""
    for line in (ROOT / MESSAGES).read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            place = anchor(line[4:])
        elif line.startswith("> "):
            yield [part for part in line[2:].split("…") if part.strip()], place


@cache
def _explained() -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(".*".join(re.escape(part) for part in parts)), place) for parts, place in messages()]
