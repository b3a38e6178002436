"""Wrap handlers of the page: errors become sentences for people, and the details go to the log only."""

import html
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr

from trainer.errors import UserError
from trainer.i18n import say

LOG = logging.getLogger("limner.page")
Handler = Callable[..., Any]
# For listeners that are no public endpoint and show no bar of their own.
QUIET = {"api_visibility": "private", "show_progress": "hidden"}


def sentence(error: Exception) -> str:
    """Return the sentence for an error; an unexpected one is logged under an id that the sentence names."""
    if isinstance(error, UserError):
        return f"{error.message} {error.remedy}".strip()
    number = secrets.token_hex(3)
    LOG.error("Unexpected error %s", number, exc_info=error)
    return say("Something went wrong (id {number}). Try again; the server's log has the details.", number=number)


def toast(error: Exception) -> gr.Error:
    """The error as a message in the corner of the page."""
    return gr.Error(html.escape(sentence(error), quote=False), print_exception=False, duration=12)


def handled(handler: Handler) -> Handler:
    """A handler, plain or a generator, whose errors are told in words and never show a traceback on the page."""
    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:  # noqa: ANN401 - whatever Gradio passes
            try:
                yield from handler(*args, **kwargs)
            except gr.Error:
                raise
            except Exception as error:  # the last place where it can be turned into words
                raise toast(error) from None

        return stream

    @wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever Gradio passes
        try:
            return handler(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:  # the last place where it can be turned into words
            raise toast(error) from None

    return call


def answered(function: Handler) -> Handler:
    """A function that JavaScript calls: it always answers {"ok": true, ...} or {"ok": false, "error": sentence}."""

    @wraps(function)
    def call(argument: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON from the browser
        try:
            return {"ok": True, **function(argument)}
        except Exception as error:  # a rejected call would look like a success in the browser
            return {"ok": False, "error": sentence(error)}

    return call
