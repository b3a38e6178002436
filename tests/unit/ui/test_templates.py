"""HTML is written in templates alone, which escape every value: nothing else makes markup of a text."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import Environment, UndefinedError, nodes
from markupsafe import Markup

from tests.conftest import CHECKOUT
from ui import templates
from ui.templates import render, rich_text

FOLDERS = [CHECKOUT / "ui", CHECKOUT / "limner_extensions"]
PROGRAM = sorted(path for folder in FOLDERS for path in folder.rglob("*.py"))
TEMPLATES = sorted(path for folder in FOLDERS for path in folder.rglob("*.html"))
TAG = re.compile(
    r"</?(a|article|b|body|button|br|code|details|div|figcaption|figure|form|h[1-6]|head|html|i|img|input|label|li|link"
    r"|main|meta|nav|ol|p|pre|script|section|select|span|strong|style|summary|svg|table|tbody|td|th|thead|title|tr|ul"
    r")(?=[\s/>{]|$)|</?q[\s>]|<!doctype",
    re.IGNORECASE,
)
MARKUP = {"Markup", "markupsafe"}


def tags_in(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each string in a program that has a tag: only messages with emphasis may have some."""
    tree = ast.parse(source)
    allowed: set[ast.expr] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):  # a docstring
            allowed.add(body[0].value)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "rich_text":
            allowed.add(node.args[0])
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and node not in allowed and TAG.search(node.value):
            yield node.lineno, node.value


@pytest.mark.parametrize(
    "code",
    [
        "html = f'<b>{name}</b>'",
        "html = '<p>{}</p>'.format(name)",
        "html = '<p>%s</p>' % name",
        "html = '<p>' + name",
        "html = f'{name}<br/>'",
        "html = ''.join(['<ul class=x>', name])",
        "html = rich_text(f'<b>{name}</b>')",
        "TEMPLATE = '<script'",
    ],
)
def test_a_tag_in_a_program_is_found(code: str) -> None:
    assert list(tags_in(code))


def test_programs_hold_no_tags() -> None:
    assert not list(tags_in("'''A <b>.'''\nrich_text('<b>{n}</b>', n=a < b > c)\nx = 'a<c'\n"))
    tags = [
        f"{path.relative_to(CHECKOUT)}:{line}: {text[:60]!r}"
        for path in PROGRAM
        for line, text in tags_in(path.read_text(encoding="utf-8"))
    ]
    assert not tags, "\n".join(tags)


def test_markup_is_made_in_one_place() -> None:
    making = {
        path.relative_to(CHECKOUT).as_posix()
        for path in PROGRAM
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Name) and node.id in MARKUP)
        or (isinstance(node, ast.alias) and node.name.rpartition(".")[2] in MARKUP)
        or (isinstance(node, ast.Attribute) and node.attr in {*MARKUP, "__html__"})
    }
    assert making == {"ui/templates/__init__.py", "ui/state/documentation.py"}  # Markdown of our own pages


def test_messages_with_emphasis_are_written_out() -> None:
    """One that came from elsewhere would be taken for markup."""
    calls = [
        node
        for path in PROGRAM
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"rich_text", "RichText"}
    ]
    assert len(calls) > 3
    for call in calls:
        is_inside = ast.unparse(call) == "RichText(message, values)"
        assert is_inside or isinstance(call.args[0], ast.Constant), ast.unparse(call)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_leave_the_escaping_on(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = Environment(autoescape=True).parse(source)
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    assert not filters & {"safe", "forceescape", "tojson", "xmlattr", "striptags"}
    assert not list(tree.find_all(nodes.ScopedEvalContextModifier)), "autoescape is not switched"
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in {"_", "rich_text", "ngettext"}:
            assert isinstance(call.args[0], nodes.Const), "the message is written out"
    assert not re.search(r"=\{\{|= \{\{", source), "a value in an attribute stands between quotes"
    assert not re.search(r"<[^>]*\son\w+\s*=", source), "no script in an attribute: the policy refuses it"
    assert "<script" not in source, "scripts are files"


def test_values_are_escaped() -> None:
    hostile = "</b>'\"><img src=x onerror=alert(1)>&{{ 7*7 }}"
    text = rich_text("<b>Resume</b> continues from {step}.", step=hostile)
    assert Markup.escape(text) == f"<b>Resume</b> continues from {Markup.escape(hostile)}."
    drawn = render("queue.html", waiting=[{"id": hostile, "name": hostile, "base": hostile, "on_hold": True}])
    assert "<img" not in drawn
    assert "49" not in drawn
    assert drawn.count(str(Markup.escape(hostile))) >= 8
    with pytest.raises(UndefinedError):
        render("queue.html", waiting=[{}])


def test_what_a_template_gave_is_not_escaped_again(tmp_path: Path) -> None:
    (tmp_path / "outer.html").write_text(
        '<p title="{{ text }}">\n  {{ inner }}\n  <b>x</b> y\n</p>\n', encoding="utf-8"
    )
    (tmp_path / "inner.html").write_text("<i>{{ text }}</i>", encoding="utf-8")
    draw = templates.renderer(tmp_path)
    inner = draw("inner.html", text="a<b")
    assert draw("outer.html", text='"', inner=inner) == '<p title="&#34;"><i>a&lt;b</i><b>x</b> y\n</p>'
    assert draw("inner.html", text="".join([inner])) == "<i>&lt;i&gt;a&amp;lt;b&lt;/i&gt;</i>", "joined by hand: a text"
