"""Errors of requests that do not go through Gradio's queue, so that the page draws them as messages.

Gradio answers these with status 500, and its browser code leaves out two values of the answer, without which it draws
nothing. Its queue has another fault: answers come by a stream that the server ends after the last one, and the answer
to a click that is made before the browser knows of that end never arrives.
"""

import logging
import re
from functools import cache
from pathlib import Path

import gradio
from fastapi import APIRouter
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("limner.page")
ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
DIRECT = "/gradio_api/run/"
_STATUS = re.compile(r"stage:`error`,endpoint:\w+,fn_index:\w+,message:(\w+)\.error,broken:\w+,")
_WORDS = b'"visible":true'  # in an error that is meant for people

router = APIRouter()


@cache
def client() -> tuple[str, str]:
    """Return the name and the code of Gradio's client with both values, or two empty texts if it looks different."""
    for file in sorted(ASSETS.glob("index-*.js")):
        code, places = _STATUS.subn(r"\g<0>duration:\1.duration,visible:\1.visible,", file.read_text(encoding="utf-8"))
        if places:
            return file.name, code
    LOG.warning("Gradio %s is not a version that Limner knows: all requests go through its queue.", gradio.__version__)
    return "", ""


if client()[0]:

    @router.get(f"/assets/{client()[0]}")
    async def serve_client() -> Response:
        """Serve the client in the place of Gradio's file."""
        return Response(client()[1], media_type="text/javascript", headers={"Cache-Control": "max-age=3600"})


class Refusals:
    """Answers with status 422 instead of 500 where a request is refused with words for people."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] != "http" or not scope["path"].startswith(DIRECT):
            await self._app(scope, receive, send)
            return
        started: list[Message] = []

        async def send_later(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 500:
                started.append(message)
                return
            if started and _WORDS in message.get("body", b""):
                started[0]["status"] = 422
            while started:
                await send(started.pop())
            await send(message)

        await self._app(scope, receive, send_later)
