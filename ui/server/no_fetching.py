"""Keep Gradio from fetching what an address in a request names: the page asks no other machine.

Its route for files streams addresses, and its components download those of files that they are sent. Before it does, it
looks the host up, at dns.google too.
"""

from typing import NoReturn

import gradio.processing_utils
import gradio.routes
from fastapi import HTTPException

FETCHING = ((gradio.routes, "secure_url_stream_response"), (gradio.processing_utils, "async_ssrf_protected_get"))


async def _refuse(*_: object) -> NoReturn:
    raise HTTPException(404)


def apply() -> None:
    """Replace the functions of Gradio that fetch, in this process.

    Raises:
        AttributeError: this version of Gradio has other ones, so that they must be looked for.
    """
    for module, name in FETCHING:
        getattr(module, name)
        setattr(module, name, _refuse)
