"""Raw calls of the API: values that have a default may be missing at the end, and a wrong call gets a sentence.

Gradio answers such calls with an error without words, or with 500.
"""

import inspect
import json
from collections.abc import Mapping

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer import foreign_text
from trainer.errors import UserError
from ui.server.request_body import MAX_BODY

CALL, BY_NAME = "/gradio_api/call/", "v2/"


class ApiCalls:
    """Completes the calls of known endpoints and refuses wrong ones; passes everything else on."""

    def __init__(self, app: ASGIApp, *, endpoints: Mapping[str, inspect.Signature]) -> None:
        """Wrap an app; `endpoints` are the signatures of the API by their names."""
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one connection."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(CALL):
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:  # the security middleware cuts off what is too long
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            body = self._complete(scope["path"].removeprefix(CALL), body)
        except UserError as error:
            await JSONResponse({"error": f"{error.message} {error.remedy}"}, 400)(scope, receive, send)
            return
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_completed() -> Message:
            if messages:
                return messages.pop()
            return await receive()

        await self._app(scope, receive_completed, send)

    def _complete(self, name: str, body: bytes) -> bytes:
        """Return the body of a call with the defaults of what it leaves out.

        Raises:
            UserError: the endpoint is unknown, or takes other values.
        """
        endpoint = name.removeprefix(BY_NAME)
        signature = self._endpoints.get(endpoint)
        if signature is None:
            raise UserError("The API has no endpoint {name!r}.", "docs/api.md lists all.", name=endpoint)
        try:
            call = foreign_text.parse_json(body or b"{}", most=MAX_BODY)
            if not isinstance(call, dict) or not isinstance(call.get("data", []), list):
                raise TypeError("the body is not a JSON object with values")
            if name.startswith(BY_NAME):
                signature.bind(**{key: value for key, value in call.items() if key != "session_hash"})
                return body
            bound = signature.bind(*call.get("data", []))
        except (TypeError, ValueError) as error:
            usage = ", ".join(str(parameter) for parameter in signature.parameters.values())
            values = {"name": endpoint, "error": str(error).rstrip("."), "usage": usage}
            raise UserError("{name}: {error}.", "It takes: {usage}.", **values) from None
        bound.apply_defaults()
        return json.dumps({**call, "data": list(bound.arguments.values())}).encode()
