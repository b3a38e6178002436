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

    function, boxes = in_loop(build)
    return function, boxes


def test_values_go_by_name_and_only_what_changes_is_sent() -> None:
    def change(*, rest: dict[str, str], a: str) -> dict[str, Any]:
        return {"rest": {"c": a + rest["b"] + rest["c"]}}

    def connect(boxes: list[gr.Textbox]) -> None:
        others = Several({"b": boxes[1], "c": boxes[2]})
        listen(boxes[0].input, change, {"a": boxes[0], "rest": others}, {"a": boxes[0], "rest": others})

    function, boxes = connected(connect)
    assert function("1", "2", "3") == {boxes[2]: "123"}


def test_what_is_read_of_several_components_is_one_value() -> None:
    def connect(boxes: list[gr.Textbox]) -> None:
        both = Several({"b": boxes[0], "c": boxes[1]}, lambda values: values["b"] + values["c"])
        listen([boxes[0].input, boxes[1].input], lambda *, both: {"c": both}, {"both": both}, {"c": boxes[2]})

    function, boxes = connected(connect)
    assert function("1", "2") == {boxes[2]: "12"}


def test_a_handler_gets_the_event_and_may_change_nothing() -> None:
    names = []

    def note(*, box: str, event: gr.EventData) -> None:
        names.append(event.name + box)

    function, _ = connected(lambda boxes: listen(boxes[0].input, note, {"box": boxes[0]}, {"box": boxes[0]}))
    assert function(gr.EventData(None, {"name": "mira"}), "!") == gr.skip()
    assert names == ["mira!"]


def test_a_generator_sends_each_of_its_values() -> None:
    def count(*, a: str, event: gr.EventData) -> Iterator[dict[str, Any]]:
        yield {"a": a + event.name}
        yield {"b": a + "2"}

    function, boxes = connected(
        lambda boxes: listen(boxes[0].input, count, {"a": boxes[0]}, {"a": boxes[0], "b": boxes[1]})
    )
    assert list(function(gr.EventData(None, {"name": "1"}), "a")) == [{boxes[0]: "a1"}, {boxes[1]: "a2"}]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("Is <b>full</b>.", "Empty it."), "Is &lt;b&gt;full&lt;/b&gt;. Empty it."),
        (KeyError("secret"), "(id "),
    ],
)
def test_errors_become_messages(error: Exception, message: str) -> None:
    def fail() -> None:
        raise error

    function, _ = connected(lambda boxes: listen(boxes[0].input, fail))
    with pytest.raises(gr.Error) as raised:
        function()
    assert message in str(raised.value)
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
