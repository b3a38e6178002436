"""Captions, file names and settings that are odd or mean harm, each with what must become of it."""

import random

from tests.hostile import Refused

UNKNOWN = Refused("unknown encoding")
WORD = "caf\u00e9, \u72ac"

CAPTIONS: dict[str, tuple[bytes, str | Refused]] = {
    "UTF-8": (WORD.encode(), WORD),
    "UTF-16, little end first": (WORD.encode("utf-16"), WORD),
    "UTF-16 without a mark": (WORD.encode("utf-16-le"), WORD),
    "UTF-16 without a mark, big end first": (WORD.encode("utf-16-be"), WORD),
    "UTF-16 cut in a letter": (WORD.encode("utf-16")[:-1], UNKNOWN),
    "UTF-32": (WORD.encode("utf-32"), WORD),
    "Windows": ("caf\u00e9 \u2019".encode("cp1252"), "caf\u00e9 \u2019"),
    "bytes that mean nothing": (b"caf\x81\x8d", UNKNOWN),
    "a zero among letters": (b"a cat\0 with a hat, sitting", UNKNOWN),
    "a picture": (b"\xff\xd8\xff\xe0\0\x10JFIF" + random.Random(3).randbytes(500), UNKNOWN),
    "more than a MB": (b"cat, " * 210_000, UNKNOWN),
    "a letter that got lost before": ("caf\ufffd".encode(), UNKNOWN),
    "white space": (b" \t\r\n \x0b\x0c ", ""),
    "several lines": (b"one\r\ntwo\rthree\n\nfour", "one two three four"),
    "html": (b"<script>alert(1)</script>", "<script>alert(1)</script>"),
    "colours of a terminal": (b"\x1b[31mred\x1b[0m\x07", "[31mred [0m"),
    "a template": (b"{{7*7}} ${7*7} {0.__class__}", "{{7*7}} ${7*7} {0.__class__}"),
    "right to left": ("cat\u202egnp".encode(), "cat gnp"),
    "joined letters": ("e\u0301\u0327".encode(), "e\u0301\u0327"),
    "a very long word": (b"a" * 100_000, "a" * 100_000),
}

# What a browser or a zip may call a picture. All are kept, each in the data set's own folder.
NAMES = [
    "../../etc/passwd.png",
    "..\\..\\windows\\system32\\x.png",
    "/etc/cron.d/x.png",
    "C:\\autoexec.png",
    "a/../../../b.png",
    "~root.png",
    "$(touch x).png",
    "; rm -rf .png",
    "<script>alert(1)</script>.png",
    "a\nb.png",
    "\x1b[31m.png",
    " lead.png",
    "trail .png",
    "..png",
    "--help.png",
    "%2e%2e%2fx.png",
    "%00.png",
    "con.png",
    "a:b.png",
    "aux.jpg",
    "\u72ac.png",
    "cafe\u0301.png",
    "\U0001f98a.png",
    "\u202egnp.png",
    "\u200b.png",
    "x" * 300 + ".png",
    ".htaccess.png",
    "events.jsonl.png",
    "a.mask.png",
    ".cache.png",
    "x.png.exe.png",
    "\ud7ff.png",
    "{0}.png",
    "%s.png",
    "__init__.png",
    "//x.png",
]
