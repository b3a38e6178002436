"""Tags as taggers name them, such as `long_hair`, and as captions have them: `long hair`."""

from collections.abc import Iterable

SMILEY = 3  # characters; the underscore of a tag that is no longer belongs to it, as in ^_^


def plain(tag: str) -> str:
    """Return a tag as it stands in a caption."""
    return tag.replace("_", " ") if len(tag) > SMILEY else tag


def parse(text: str) -> frozenset[str]:
    """Return the tags of a comma-separated list, for `join`."""
    return frozenset(plain(tag.strip()).lower() for tag in text.split(",") if tag.strip())


def join(probabilities: Iterable[tuple[str, float]], blacklist: frozenset[str]) -> str:
    """Return a caption of tags, the most likely first, without those of the blacklist."""
    ordered = sorted(probabilities, key=lambda pair: -pair[1])
    names = (plain(tag) for tag, _probability in ordered)
    return ", ".join(name for name in names if name.lower() not in blacklist)
