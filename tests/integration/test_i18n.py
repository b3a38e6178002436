"""Translation: the catalog fits the messages of the program, and is what the page shows."""

import ast
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from babel.messages import pofile

from scripts import translations
from tests.conftest import CHECKOUT, python, unmeasured
from trainer.errors import UserError
from trainer.i18n import _
from ui.widgets import scripts

FOLDER = translations.LANGUAGES / "de" / "LC_MESSAGES"
with (FOLDER / "limner.po").open("rb") as file:
    GERMAN = pofile.read_po(file, locale="de")


def both(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def in_german(code: str, **variables: str) -> Any:  # noqa: ANN401 - JSON
    """What a program says as JSON that runs in German."""
    environment = unmeasured() | {"LANGUAGE": "de", "PYTHONIOENCODING": "utf-8"} | variables
    done = python("-c", code, environment=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_command_line_is_in_english_as_its_help_is() -> None:
    done = python("-m", "trainer", "check", "nowhere", environment=os.environ | {"LANGUAGE": "de"})
    assert done.stderr.startswith("There is no dataset"), done.stderr


def test_translations_take_the_same_values_and_tags() -> None:
    def named(text: str) -> set[str]:
        return {re.split(r"[.!:]", field)[0] for field in re.findall(r"\{+([\w.]+[^{}]*)\}+", text)}

    for message in GERMAN:
        for text in filter(None, both(message.string) if message.id else ()):
            english = both(message.id)[-1]
            assert named(text) == named(english), text
            assert re.findall(r"</?\w+>", text) == re.findall(r"</?\w+>", english), text


def test_messages_are_looked_up_and_formatted_once() -> None:
    code = "_('a', x=1); ngettext('{n} b', '{n} c', 2); _(d); UserError('e', f)"
    assert list(translations.calls(code)) == ["a", ("{n} b", "{n} c"), "e"]
    with pytest.raises(ValueError, match="f-string"):
        list(translations.calls("_(f'a {b}')"))
    named = UserError("The adapter {name} is not there.", "Choose another one.", name="{x}")
    assert str(named) == "The adapter {x} is not there. Choose another one."
    again = UserError(named.message, named.remedy)
    assert (again.message, again.remedy) == (named.message, named.remedy)
    assert str(UserError("The template has no {caption}.", "")) == "The template has no {caption}."
    assert _("{name!r} is taken.", name="miku \\(vocaloid\\) 😀") == "'miku \\(vocaloid\\) 😀' is taken."
    assert _("{name!r} is taken.", name="a\x1b[31m") == "'a\\x1b[31m' is taken.", "no codes for a terminal"


NAMED = {"label", "info", "placeholder"}
FIRST = {"gr.Button", "gr.Tab", "gr.Accordion", "gr.UploadButton"}


def test_no_label_is_written_past_the_catalogue() -> None:
    for path in sorted((CHECKOUT / "ui").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                texts = [keyword.value for keyword in node.keywords if keyword.arg in NAMED]
                texts += node.args[:1] if ast.unparse(node.func) in FIRST else []
                for text in texts:
                    assert not isinstance(text, ast.Constant | ast.JoinedStr), (path, ast.unparse(text))


SAYING = "import json; from trainer.i18n import _, ngettext; print(json.dumps([_('Undo'), ngettext('{n} hint', "
SAYING += "'{n} hints', 1), ngettext('{n} hint', '{n} hints', 2), _(''), _('{a} of none', a='{b}')]))"


def test_the_environment_chooses_the_language() -> None:
    german = ["R\u00fcckg\u00e4ngig", "1 Hinweis", "2 Hinweise", "", "{b} of none"]
    english = ["Undo", "1 hint", "2 hints", "", "{b} of none"]
    assert (in_german(SAYING), in_german(SAYING, LANGUAGE="", LC_ALL="de_AT.UTF-8")) == (german, german)
    assert (in_german(SAYING, LANGUAGE="en_GB:en:de"), in_german(SAYING, LANGUAGE="xx")) == (english, english)


PAGE = """
import json
from trainer.runs import events
from ui import page
from ui.state.sampler_client import SamplerClient
from ui.state.run_watcher import RunWatcher
print(json.dumps(page.build(SamplerClient(), RunWatcher()).get_config_file()["components"], default=str))
"""
SHOWN = ("label", "info", "placeholder", "value", "choices", "html_template", "js_on_load")


def texts_in(value: object) -> Iterator[str]:
    """The texts in a component's settings: of a choice its label, not its key."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item[0] if isinstance(item, list) and len(item) == 2 else item)


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_the_page_is_in_german() -> None:
    components = in_german(PAGE)
    names = [component["props"]["label"] for component in components if component["type"] == "tabitem"]
    assert names[0] == "Bilder"
    translated = [message for message in GERMAN if isinstance(message.id, str) and message.id and message.string]
    english = {message.id for message in translated if message.string != message.id}
    texts = []
    for component in components:
        if component["type"] not in ("state", "api"):
            for name in SHOWN:
                if name != "value" or "choices" not in component["props"]:  # or it is a key
                    texts += texts_in(component["props"].get(name))
    assert len(texts) > 300
    left = {text for text in texts if re.sub(r"<[^>]+>", "", text).strip() in english}
    for text in texts:  # templates and scripts hold several messages each
        assert "[[" not in text.replace("[[]", "")
        left |= {message for message in english if len(message) > 20 and message in text}
    assert sorted(left) == []


def test_words_in_scripts_fit_their_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "_", lambda text: f'"{text}"')
    assert '= "\\"Saving' not in scripts.read("captions.js")  # it stands behind a question mark
    assert '? "\\"Saving' in scripts.read("captions.js")
