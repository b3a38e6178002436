"""Wrap handlers of the page: errors become messages for the user, and their details go only to the log."""

import html
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import gradio as gr

from trainer.errors import UserError, explain_disk
from trainer.i18n import _

LOG = logging.getLogger("limner.page")
Handler = Callable[..., Any]
# For listeners that are not public endpoints and show no progress bar of their own.
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
# For those whose reading all that wait share: fifty pages in turns of four would read a project twice in each turn.
TOGETHER = {**QUIET, "concurrency_limit": 32}
# For those of which each counts, one after the other: by default Gradio drops a request while one like it is under way.
EACH = {**QUIET, "trigger_mode": "multiple", "concurrency_limit": 1}
# For those of the large form: each message about a request costs the browser a change of every one of its fields, and
# outside the queue there are half as many.
UNQUEUED = {**QUIET, "queue": False}


def sentence(error: Exception) -> str:
    """Return the sentence for an error; an unexpected one is logged under an id that the sentence names."""
    explained = error if isinstance(error, UserError) else explain_disk(error)
    if explained:
        return f"{explained.message} {explained.remedy}".strip()
    number = secrets.token_hex(3)
    LOG.error("Unexpected error %s", number, exc_info=error)
    return _("Something went wrong (id {number}). Try again; the server's log has the details.", number=number)


def toast(error: Exception) -> gr.Error:
    """Return the error as a message in the corner of the page."""
    return gr.Error(html.escape(sentence(error), quote=False), print_exception=False, duration=12)


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
