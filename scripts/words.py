"""Collects what people read, for translation: `python -m scripts.words` brings the catalogues up to date.

What is new in a catalogue is empty until somebody translates it in the .po file; run this again then, for the .mo file.
A new language is a new folder in `trainer/languages`, with an empty .po file to begin with.
"""

import ast
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

os.environ["LANGUAGE"] = "en"  # before anything is imported that speaks: messages are English

from babel import Locale
from babel.messages import Catalog, mofile, pofile

from trainer.adapter_files import summary
from trainer.config import TrainConfig
from trainer.data import image_stats
from trainer.data.problems import KINDS
from trainer.i18n import LANGUAGES
from trainer.schema import Section, sections
from ui.widgets.templates import MESSAGE, plain

HERE = Path(__file__).resolve().parent.parent
# Which arguments of a call are messages: all that lead to `say`. Of `count` they are two forms of one message.
CALLS = {"say": (0,), "count": (0, 1), "UserError": (0, 1), "refusal": (1,), "_refusal": (1,), "check_name": (1,)}
Id = str | tuple[str, str]


class Words(Catalog):
    """A catalogue whose header says no more than is needed, so that the same words give the same file."""

    @property
    def mime_headers(self) -> list[tuple[str, str]]:
        """What stands under the empty message."""
        return [
            ("Language", str(self.locale_identifier)),
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Transfer-Encoding", "8bit"),
            ("Plural-Forms", self.plural_forms),
        ]

    @mime_headers.setter
    def mime_headers(self, value: Iterable[tuple[str, str]]) -> None:
        raise AttributeError("The header of a catalogue is made from its language.")


def collect() -> dict[Id, list[str]]:
    """All messages, each with the files it stands in, in the order of the files."""
    found: dict[Id, list[str]] = {}
    for message, place in _everywhere():
        places = found.setdefault(message, [])
        if place not in places:
            places.append(place)
    return found


def _everywhere() -> Iterator[tuple[Id, str]]:
    for path in sorted([HERE / "app.py", *(HERE / "trainer").rglob("*.py"), *(HERE / "ui").rglob("*.*")]):
        place = path.relative_to(HERE).as_posix()
        if path.suffix == ".py":
            yield from ((message, place) for message in calls(path.read_text(encoding="utf-8")))
        elif path.suffix in (".html", ".js"):
            yield from ((plain(found[1]), place) for found in MESSAGE.finditer(path.read_text(encoding="utf-8")))
    yield from ((message, "trainer/config/run_config.py") for message in settings(TrainConfig) if message)
    for name, kind in KINDS.items():
        words: tuple[Id, ...] = (name, kind.titles if "{n}" in kind.title else kind.title)
        words += (kind.effect, kind.remedy, kind.button)
        yield from ((message, "trainer/data/problems.py") for message in words if message)
    yield from ((name, "trainer/data/image_stats.py") for name in image_stats.COLORS)
    yield from ((name, "trainer/adapter_files/summary.py") for name in summary.TRAINING_SETTINGS)


def calls(source: str) -> Iterator[Id]:
    """The messages of a program.

    Raises:
        ValueError: a message is an f-string, which cannot be looked up.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        given = [node.args[place] for place in CALLS.get(name, ()) if place < len(node.args)]
        if any(isinstance(one, ast.JoinedStr) for one in given):
            raise ValueError(f"an f-string in line {node.lineno}: {ast.unparse(node)}")
        texts = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        if name == "count" and len(texts) == 2:
            yield texts[0], texts[1]
        elif name != "count":
            yield from filter(None, texts)


def settings(section: type[Section]) -> Iterator[str]:
    """What the form shows of the settings: titles, helps, and choices."""
    for info in section.model_fields.values():
        if not info.title:
            continue
        yield info.title
        kinds = sections(info.annotation)
        if not kinds:
            yield info.description or ""
            yield from (choice for choice in get_args(info.annotation) if isinstance(choice, str))
        for kind in kinds:
            if len(kinds) > 1:
                yield str(kind.model_fields["kind"].default).capitalize()
            yield from settings(kind)


def updated(language: str, messages: dict[Id, list[str]]) -> Words:
    """The catalogue of a language with these messages; translations of others are dropped."""
    with (LANGUAGES / language / "LC_MESSAGES" / "limner.po").open("rb") as file:
        known = pofile.read_po(file, locale=language)
    title = f"# Limner in {Locale.parse(language).english_name}."
    made = Words(locale=Locale.parse(language), header_comment=title, fuzzy=False)
    for message, places in messages.items():
        before = known.get(message[0] if isinstance(message, tuple) else message)
        string: Any = (
            before.string if before and before.id == message else ("", "") if isinstance(message, tuple) else ""
        )
        made.add(message, string, locations=[(place, 0) for place in places])
    return made


def write(language: str, catalogue: Words) -> None:
    """Write a catalogue, for people and compiled."""
    folder = LANGUAGES / language / "LC_MESSAGES"
    with (folder / "limner.po").open("wb") as file:
        pofile.write_po(file, catalogue, width=120, include_lineno=False)
    with (folder / "limner.mo").open("wb") as file:
        mofile.write_mo(file, catalogue)


def main() -> int:
    """Bring all catalogues up to date; returns how many messages lack a translation."""
    messages, missing = collect(), 0
    for language in sorted(folder.name for folder in LANGUAGES.iterdir()):
        # English has an empty one: who asks for it before other languages gets it.
        catalogue = updated(language, {} if language == "en" else messages)
        write(language, catalogue)
        forms = [one.string if isinstance(one.string, tuple | list) else (one.string,) for one in catalogue if one.id]
        empty = sum(1 for one in forms if not all(one))
        print(f"{language}: {len(catalogue)} messages, {empty} without a translation")
        missing += empty
    return missing


if __name__ == "__main__":
    sys.exit(main() > 0)
