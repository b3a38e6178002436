"""Collect the messages for translation: `python -m scripts.translations` brings the catalogs up to date.

A new message is empty in a catalog until it is translated in the .po file. Run this again then, for the .mo file, which
installing Limner writes too. A new language is a new folder in `trainer/languages`, with an empty .po file to begin
with. `--missing` changes nothing and warns of what is not translated, which people then read in English.
"""

import argparse
import ast
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

os.environ["LANGUAGE"] = "en"  # before importing modules with messages: these are English

from babel import Locale
from babel.messages import Catalog, Message, mofile, pofile
from jinja2 import Environment, nodes

from trainer.adapter_files import summary
from trainer.config import TrainConfig
from trainer.data import image_stats
from trainer.data.problems import KINDS
from trainer.i18n import LANGUAGES
from trainer.schema import Section, kind_titles, sections
from ui.widgets.scripts import MESSAGE, plain

HERE = Path(__file__).resolve().parent.parent
# Positions of the arguments that are messages: of all functions that pass them to `_`. Those of `PLURALS` are forms of
# one message.
CALLS = {
    "_": (0,),
    "note": (0,),
    "warn": (0,),
    "rich_text": (0,),
    "ngettext": (0, 1),
    "UserError": (0, 1),
    "MissingPartError": (0, 1),
    "_counted": (1, 2),
}
PLURALS = ("ngettext", "_counted")
CALLS |= dict.fromkeys(("refusal", "_refusal", "check_name"), (1,))
Id = str | tuple[str, str]


class MessageCatalog(Catalog):
    """A catalog with a minimal header, so that the same messages give the same file."""

    @property
    def mime_headers(self) -> list[tuple[str, str]]:
        """The header that stands under the empty message."""
        return [
            ("Language", str(self.locale_identifier)),
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Transfer-Encoding", "8bit"),
            ("Plural-Forms", self.plural_forms),
        ]

    @mime_headers.setter
    def mime_headers(self, value: Iterable[tuple[str, str]]) -> None:
        raise AttributeError("The header of a catalog is made from its language.")


def collect() -> dict[Id, list[str]]:
    """Return all messages, each with the files that contain it, in the order of the files."""
    messages: dict[Id, list[str]] = {}
    for message, file in _all_messages():
        files = messages.setdefault(message, [])
        if file not in files:
            files.append(file)
    return messages


def _all_messages() -> Iterator[tuple[Id, str]]:
    folders = (HERE / name for name in ("trainer", "ui", "limner_extensions"))
    for path in sorted([HERE / "app.py", *(path for folder in folders for path in folder.rglob("*.*"))]):
        if read := READERS.get(path.suffix):
            file = path.relative_to(HERE).as_posix()
            yield from ((message, file) for message in read(path.read_text(encoding="utf-8")))
    for text in settings(TrainConfig):
        if text:
            yield text, "trainer/config/run_config.py"
    for name, kind in KINDS.items():
        title: Id = kind.titles if "{n}" in kind.title else kind.title
        for message in (name, title, kind.effect, kind.remedy, kind.button):
            if message:
                yield message, "trainer/data/problems.toml"
    yield from ((name, "trainer/data/image_stats.py") for name in image_stats.COLORS)
    yield from ((name, "trainer/adapter_files/summary.py") for name in summary.TRAINING_SETTINGS)


def calls(source: str) -> Iterator[Id]:
    """Yield the messages in the source of a program.

    Raises:
        ValueError: a message is an f-string, which cannot be looked up.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        arguments = [node.args[index] for index in CALLS.get(name, ()) if index < len(node.args)]
        if any(isinstance(argument, ast.JoinedStr) for argument in arguments):
            raise ValueError(f"an f-string in line {node.lineno}: {ast.unparse(node)}")
        yield from _ids(name, [argument.value for argument in arguments if isinstance(argument, ast.Constant)])


def calls_in_template(source: str) -> Iterator[Id]:
    """Yield the messages in the source of a template (see `ui.templates`)."""
    for call in Environment(autoescape=True).parse(source).find_all(nodes.Call):
        if isinstance(call.node, nodes.Name):
            arguments = [call.args[index] for index in CALLS.get(call.node.name, ()) if index < len(call.args)]
            yield from _ids(call.node.name, [each.value for each in arguments if isinstance(each, nodes.Const)])


def calls_in_script(source: str) -> Iterator[Id]:
    """Yield the messages in the source of a script of the browser."""
    return (plain(match[1]) for match in MESSAGE.finditer(source))


READERS = {".py": calls, ".html": calls_in_template, ".js": calls_in_script}


def _ids(function: str, arguments: Iterable[object]) -> Iterator[Id]:
    texts = [argument for argument in arguments if isinstance(argument, str)]
    if function in PLURALS and len(texts) == 2:
        yield texts[0], texts[1]
    elif function not in PLURALS:
        yield from filter(None, texts)


def settings(section: type[Section]) -> Iterator[str]:
    """Yield the texts of settings that the form shows: titles, descriptions, and choices."""
    for info in section.model_fields.values():
        if not info.title:
            continue
        yield info.title
        kinds = sections(info.annotation)
        if not kinds:
            yield info.description or ""
            yield from (choice for choice in get_args(info.annotation) if isinstance(choice, str))
        for kind in kinds:
            yield from settings(kind)
    yield from kind_titles(section).values()


def updated(language: str, messages: dict[Id, list[str]]) -> MessageCatalog:
    """Return the catalog of a language with these messages; translations of others are dropped."""
    with (LANGUAGES / language / "LC_MESSAGES" / "limner.po").open("rb") as file:
        known = pofile.read_po(file, locale=language)
    title = f"# Limner in {Locale.parse(language).english_name}."
    catalog = MessageCatalog(locale=Locale.parse(language), header_comment=title, fuzzy=False)
    for message, files in messages.items():
        before = known.get(message[0] if isinstance(message, tuple) else message)
        string: Any = ("", "") if isinstance(message, tuple) else ""
        if before and before.id == message:
            string = before.string
        catalog.add(message, string, locations=[(file, 0) for file in files])
    return catalog


def write(language: str, catalog: MessageCatalog) -> None:
    """Write a catalog as .po and .mo file."""
    folder = LANGUAGES / language / "LC_MESSAGES"
    with (folder / "limner.po").open("wb") as file:
        pofile.write_po(file, catalog, width=120, include_lineno=False)
    with (folder / "limner.mo").open("wb") as file:
        mofile.write_mo(file, catalog)


def _is_translated(message: Message) -> bool:
    return all(message.string) if isinstance(message.string, tuple | list) else bool(message.string)


def untranslated(catalog: MessageCatalog) -> list[str]:
    """Return the messages of a catalog that have no translation."""
    return [str(message.id) for message in catalog if message.id and not _is_translated(message)]


def main() -> None:
    """Bring all catalogs up to date, or list what they miss."""
    parser = argparse.ArgumentParser(prog="scripts.translations", description="Bring the message catalogs up to date.")
    parser.add_argument("--missing", action="store_true", help="list messages without a translation; write nothing")
    only_list = parser.parse_args().missing
    messages = collect()
    for language in sorted(folder.name for folder in LANGUAGES.iterdir()):
        # English has an empty one: users who prefer it to other languages get it.
        catalog = updated(language, {} if language == "en" else messages)
        names = untranslated(catalog)
        if only_list:
            print("".join(f"warning: no translation in {language}: {name}\n" for name in names), end="")
        else:
            write(language, catalog)
            print(f"{language}: {len(catalog)} messages, {len(names)} without a translation")


if __name__ == "__main__":
    main()
