"""State of open pages in small: Gradio keeps for each page the settings of all components and copies of most of them.

That is 1 MB for each page that is open or was open lately, and none of it is ever read.
"""

from typing import Any

from gradio.components import Component
from gradio.state_holder import SessionState, StateHolder


class States(StateHolder):  # type: ignore[misc] # of gradio, which is untyped
    """States of pages, by the number that the browser gives its page."""

    def __getitem__(self, session_id: str) -> SessionState:
        state = super().__getitem__(session_id)
        if not isinstance(state, State):
            state.__class__ = State
            state.config_values = Unread()
        return state


class State(SessionState):  # type: ignore[misc] # of gradio, which is untyped
    """State of a page without components that are as they were."""

    def __setitem__(self, key: int, value: object) -> None:
        """Store a component or a value; not one that Gradio makes anew of each output that an answer leaves alone."""
        present = self.blocks_config.blocks.get(key)
        if not isinstance(value, Component) or present is None or _look(value) != _look(present):
            super().__setitem__(key, value)


class Unread(dict[int, Any]):
    """Settings of components that Gradio notes for its links to pages, of which this page has none."""

    def __contains__(self, key: object) -> bool:
        return True  # so that none is computed

    def __missing__(self, key: int) -> dict[str, Any]:
        return {}

    def __setitem__(self, key: int, value: object) -> None:
        """Leave it out."""


def _look(component: Component) -> dict[str, Any]:
    return {name: value for name, value in component.constructor_args.items() if name not in ("value", "render")}
