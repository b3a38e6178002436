"""Connect handlers with the page: every listener goes through `listen`, with its values by name.

Errors become messages for the user, and their details go only to the log.
"""

import inspect
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from threading import Lock
from typing import Any

import gradio as gr

from trainer.errors import UserError, explain_disk
from trainer.i18n import _
from ui.state import documentation
from ui.templates import render
from ui.widgets import direct_errors

LOG = logging.getLogger("limner.page")
Handler = Callable[..., Any]
Untyped = Any  # of Gradio


@dataclass(frozen=True)
class Kind:
    """The treatment of a request of a listener while another one is under way."""

    trigger_mode: str  # of Gradio, which by default drops one of two: the second of two clicks would be lost
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext  # a lock answers those of all pages one by one


ACT = Kind("multiple", Lock)  # each one counts
START = Kind("once", Lock)  # a second click while it starts is the same one
CHOICE = Kind("always_last")  # the last one counts; it gets no event data
VIEW = Kind("multiple")
TICK = Kind("once")  # of a timer: the next one comes anyway
# Waits until what the page asked for before has been answered: what was deleted last is then what is restored.
ANSWERED_FIRST = "() => window.limner.answered().then(() => [])"


@dataclass(frozen=True)
class Several:
    """Components, by name, whose values a handler takes or returns as one mapping, or as what `read` makes of it."""

    components: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], Any] = dict


def listen(
    on: Untyped,
    handler: Handler | None,
    takes: Mapping[str, Any] | None = None,
    fills: Mapping[str, Any] | None = None,
    *,
    kind: Kind = ACT,
    **options: object,
) -> Untyped:
    """Call a handler on an event of a component, such as `button.click`, or on each of several.

    It gets the values of `takes` as keyword arguments, and the event if it has an argument `event`. It returns the new
    values of those of `fills` that change, by their names, or nothing; a generator yields them. Without a handler, the
    JavaScript in `js` gets the values in their order instead, and returns as many as `fills` has components.

    Only generators go through Gradio's queue, in which an answer can get lost (`ui.widgets.direct_errors`).
    """
    taken, filled = dict(takes or {}), dict(fills or {})
    function = handler and _by_name(handler, taken, filled, kind.turn())
    inputs, outputs = (components(named) for named in (taken, filled))
    settings = {
        "trigger_mode": kind.trigger_mode,
        "queue": inspect.isgeneratorfunction(handler) or not direct_errors.client()[0],
        "concurrency_limit": 1,
    }
    settings |= {"api_visibility": "private", "show_progress": "hidden", **options}
    if isinstance(on, Sequence):
        return gr.on(list(on), function, inputs, outputs, **settings)
    return on(function, inputs, outputs, **settings)


def listen_at_end(request: Untyped, *handler: Untyped, **options: Untyped) -> None:
    """Call a handler as `listen` does, once a request of another listener has been answered or has failed.

    Gradio's own `then` is silent after a failure.
    """
    for end in (request.success, request.failure):
        listen(end, *handler, **options)


def components(named: Mapping[str, Any]) -> list[Any]:
    """Return the components that a listener takes or fills, in the order of their values."""
    listed: list[Any] = []
    for value in named.values():
        if isinstance(value, Several):
            listed += components(value.components)
        else:
            listed.append(value)
    return listed


def _by_name(
    handler: Handler, takes: Mapping[str, Any], fills: Mapping[str, Any], turn: AbstractContextManager[Any]
) -> Handler:
    """Return what Gradio calls with the values in their order; errors become messages, never a traceback."""

    def call(*values: object, **event: object) -> object:
        with turn, _toasting():
            changed = _results(fills, handler(**_arguments(takes, iter(values)), **event))
        if not fills:
            return None
        return changed or gr.skip()

    def stream(*values: object, **event: object) -> Iterator[object]:
        with _toasting():
            for returned in handler(**_arguments(takes, iter(values)), **event):
                yield _results(fills, returned) or gr.skip()

    def call_with_event(event: gr.EventData, *values: object) -> object:
        return call(*values, event=event)

    def stream_with_event(event: gr.EventData, *values: object) -> Iterator[object]:
        yield from stream(*values, event=event)

    has_event = "event" in inspect.signature(handler).parameters
    if inspect.isgeneratorfunction(handler):
        return stream_with_event if has_event else stream
    return call_with_event if has_event else call


def _arguments(takes: Mapping[str, Any], values: Iterator[object]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, component in takes.items():
        if isinstance(component, Several):
            named[name] = component.read(_arguments(component.components, values))
        else:
            named[name] = next(values)
    return named


def _results(fills: Mapping[str, Any], returned: Mapping[str, Any] | None) -> dict[Any, Any]:
    changed: dict[Any, Any] = {}
    for component, value in _pairs(fills, returned or {}):
        changed[component] = _merged(changed.get(component), value)
    return changed


def _pairs(fills: Mapping[str, Any], returned: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    for name, value in returned.items():
        target = fills[name]
        if isinstance(target, Several):
            yield from _pairs(target.components, value)
        else:
            yield target, value


def _merged(before: object, update: object) -> object:
    """Return one value for a component that two parts of an answer are about: two updates of it become one."""
    if isinstance(before, dict) and isinstance(update, dict) and "__type__" in before and "__type__" in update:
        return before | update
    return update


def sentence(error: Exception) -> str:
    """Return the sentence for an error; an unexpected one is logged under an id that the sentence names."""
    if explained := _explain(error):
        return f"{explained.message} {explained.remedy}".strip()
    number = secrets.token_hex(3)
    LOG.error("Unexpected error %s", number, exc_info=error)
    return _("Something went wrong (id {number}). Try again; the server's log has the details.", number=number)


def toast(error: Exception) -> gr.Error:
    """Return the error as a message in the corner of the page, with a link to the help for it."""
    text = render("toast.html", text=sentence(error), help=help_link(error))
    return gr.Error(text.strip(), print_exception=False, duration=12)


def help_link(error: Exception) -> str:
    """Return a link to what the documentation says about an error, or "" if it says nothing."""
    template = "Something went wrong (id {number})"
    if explained := _explain(error):
        template = explained.template
    return documentation.link(template)


def _explain(error: Exception) -> UserError | None:
    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError):  # deleted by another page or program while it was being read
        LOG.warning("No longer there: %s", error.filename)
        return UserError("A file or folder is no longer there.", "Reload the page to see what there is now.")
    return explain_disk(error)


def handled(handler: Handler) -> Handler:
    """Wrap a handler, plain or a generator, so that its errors become messages and never a traceback on the page."""
    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def stream(*args: object, **kwargs: object) -> Iterator[Any]:
            with _toasting():
                yield from handler(*args, **kwargs)

        return stream

    @wraps(handler)
    def call(*args: object, **kwargs: object) -> object:
        with _toasting():
            return handler(*args, **kwargs)

    return call


@contextmanager
def _toasting() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise toast(error) from None


def answered(function: Handler) -> Callable[[Any], dict[str, Any]]:
    """Wrap a function that JavaScript calls: it returns {"ok": true, ...} or {"ok": false, "error": sentence}."""

    @wraps(function)
    def call(argument: object) -> dict[str, Any]:
        try:
            return {"ok": True, **function(argument)}
        except Exception as error:  # a rejected call would look like a success in the browser
            return {"ok": False, "error": sentence(error)}

    return call
