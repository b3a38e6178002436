"""Fields that people edit."""

from typing import TypeVar

import gradio as gr

from ui.widgets.handlers import Untyped

Component = TypeVar("Component", bound=gr.Component)


def field(kind: type[Component], name: str, label: str, info: str = "", /, **options: Untyped) -> Component:
    """Draw a component with an id, a label and a help text; it is edited although handlers fill it, too."""
    drawn: Component = kind(label=label, info=info or None, elem_id=name, interactive=True, **options)
    return drawn
