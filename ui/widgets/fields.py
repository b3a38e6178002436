"""Fields that people edit."""

from functools import partial
from typing import TypeVar

import gradio as gr

from trainer.i18n import _
from ui.widgets.handlers import Untyped

Component = TypeVar("Component", bound=gr.Component)


def field(kind: type[Component], name: str, label: str, info: str = "", /, **options: Untyped) -> Component:
    """Draw a component with an id, a label and a help text; it is edited although handlers fill it, too."""
    drawn: Component = kind(label=label, info=info or None, elem_id=name, interactive=True, **options)
    if isinstance(drawn, gr.Dropdown):
        # Gradio would refuse a choice that it has not offered to this page itself. It forgets what it has offered when
        # the server is restarted, and when 300 other pages were opened. Handlers look up what is chosen anyway.
        drawn.preprocess = partial(_read_choice, drawn.multiselect)
    return drawn


def _read_choice(several: bool | None, value: object) -> object:
    """Return what was chosen in a list.

    Raises:
        gr.Error: it is not a text or a number, or a list of them where `several` can be chosen.
    """
    if value is None:
        return None
    values = value
    if not several:
        values = [value]
    if not isinstance(values, list) or not all(isinstance(each, str | int) for each in values):
        raise gr.Error(_("This is not a choice from the list."), print_exception=False)
    return value
