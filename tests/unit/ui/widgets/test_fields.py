"""Fields as Gradio reads what a page sends of them."""

from typing import Any

import gradio as gr
import pytest

from tests.unit.ui.test_page import in_loop
from ui.widgets.fields import field
from ui.widgets.handlers import listen

LISTED = {"choices": [("None", "")], "value": ""}


def sent(choice: object, **options: Any) -> object:  # noqa: ANN401 - options of a dropdown
    """Return the value that a handler receives from a page whose state the server has lost."""

    async def answer() -> object:
        with gr.Blocks() as page:
            chooser = field(gr.Dropdown, "chooser", "Chooser", **LISTED | options)
            text = gr.Textbox()
            listen(chooser.input, lambda chosen: {"text": repr(chosen)}, {"chosen": chooser}, {"text": text})
        return (await page.process_api(page.fns[max(page.fns)], [choice]))["data"][0]

    return in_loop(answer)


def test_a_choice_counts_that_was_offered_before_a_restart() -> None:
    """Gradio compares a choice with those that it has offered to this page, which it forgets."""
    assert sent("2026-12-02_run@62") == "'2026-12-02_run@62'"
    assert sent(["one", "two"], multiselect=True, value=[]) == "['one', 'two']"
    assert (sent(75), sent(None)) == ("75", "None")


@pytest.mark.parametrize(
    ("choice", "options"),
    [({"a": [1]}, {}), (["one"], {}), ([["one"]], {}), ("one", {"multiselect": True, "value": []})],
)
def test_what_cannot_be_a_choice_is_refused(choice: object, options: dict[str, Any]) -> None:
    with pytest.raises(gr.Error, match="not a choice"):
        sent(choice, **options)
