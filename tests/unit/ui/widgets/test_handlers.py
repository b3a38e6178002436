"""`listen`: values by name, errors as messages. The functions are called as Gradio does it."""

import ast
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pytest

from tests.conftest import CHECKOUT
from tests.unit.ui.test_page import in_loop
from trainer.errors import UserError
from ui.widgets.handlers import Several, listen

Function = Callable[..., Any]


def connected(connect: Callable[[list[gr.Textbox]], Any]) -> tuple[Function, list[gr.Textbox]]:
    """Connect a listener on a page with three boxes; returns what Gradio calls, and the boxes."""

    def build() -> tuple[Function, list[gr.Textbox]]:
        with gr.Blocks() as page:
            boxes = [gr.Textbox() for _ in range(3)]
            connect(boxes)
        return page.fns[max(page.fns)].fn, boxes

    return in_loop(build)


def change(*, a: str, rest: dict[str, str], both: str, event: gr.EventData) -> dict[str, Any]:
    return {"rest": {"c": a + rest["b"] + both + event.name}} if a else {}


def each(*, event: gr.EventData, **values: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - as of `change`
    yield change(event=event, **values)
    yield change(event=event, **values | {"a": ""})


def test_values_go_by_name_and_only_what_changes_is_sent() -> None:
    def connect(boxes: list[gr.Textbox], handler: Function) -> None:
        rest = Several({"b": boxes[1], "c": boxes[2]})
        both = Several({"b": boxes[1], "c": boxes[2]}, lambda values: values["c"] + values["b"])
        listen(boxes[0].input, handler, {"a": boxes[0], "rest": rest, "both": both}, {"a": boxes[0], "rest": rest})

    event = gr.EventData(None, {"name": "!"})
    function, boxes = connected(lambda boxes: connect(boxes, change))
    assert function(event, "1", "2", "3", "2", "3") == {boxes[2]: "1232!"}
    assert function(event, "", "2", "3", "2", "3") == gr.skip(), "it may change nothing"
    function, boxes = connected(lambda boxes: connect(boxes, each))
    assert list(function(event, "1", "2", "3", "2", "3")) == [{boxes[2]: "1232!"}, gr.skip()]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("Is <b>full</b>.", "Empty it."), "Is &lt;b&gt;full&lt;/b&gt;. Empty it."),
        (KeyError("secret"), r"\(id "),
        (FileNotFoundError(2, "no such file", "/secret"), "A file or folder is no longer there. Reload the page"),
    ],
)
def test_errors_become_messages(error: Exception, message: str) -> None:
    def fail() -> None:
        raise error

    function, _ = connected(lambda boxes: listen(boxes[0].input, fail))
    with pytest.raises(gr.Error, match=message) as raised:
        function()
    assert "secret" not in str(raised.value)


LISTENERS = set(
    ["click", "input", "change", "select", "blur", "submit", "upload", "tick", "then", "success", "expand", "on"]
)
CUSTOM = {"apply", "edit", "end", "delete", "undo", "load"}  # events of `gr.HTML` and of the page, and common names
OPTIONS = {"fn", "inputs", "outputs", "js", "queue", "trigger_mode"}


def connects(node: ast.AST) -> bool:
    """Find calls that connect a handler by themselves."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    is_connecting = any(isinstance(part, ast.Lambda) for part in node.args)
    is_connecting |= bool(OPTIONS & {word.arg for word in node.keywords})
    return node.func.attr in LISTENERS or (node.func.attr in CUSTOM and is_connecting)


def test_every_listener_goes_through_listen() -> None:
    program = [path for path in (CHECKOUT / "ui").rglob("*.py") if path.name != "handlers.py"]
    others = {
        f"{path.relative_to(CHECKOUT)}:{node.lineno}"
        for path in program
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if connects(node)
    }
    assert others == set()
    assert "trigger_mode" not in "".join(path.read_text(encoding="utf-8") for path in program)


def test_two_updates_of_a_component_become_one() -> None:
    """Two parts of the page may say something about the button that starts a run."""
    off, title = gr.update(interactive=False), gr.update(value="Start")

    def connect(boxes: list[gr.Textbox]) -> None:
        fills = {"plan": boxes[0], "view": Several({"start": boxes[0]})}
        listen(boxes[1].change, lambda: {"plan": off, "view": {"start": title}}, {}, fills)

    (changed,) = connected(connect)[0]().values()
    assert (changed["interactive"], changed["value"]) == (False, "Start")
