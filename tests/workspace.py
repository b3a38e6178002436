"""A tiny page server that the per-user proxy starts instead of the real one: `python -m tests.workspace --socket N`."""

import asyncio
import hashlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from trainer import paths, storage


async def echo(request: Request) -> Response:
    """Return the request as it was received."""
    target = request.scope["raw_path"].decode() + "?" + request.scope["query_string"].decode()
    header = [(key.decode(), value.decode()) for key, value in request.headers.raw]
    places = {name: os.environ.get(name) for name in ("LIMNER_HOME", "LIMNER_SHARED")}
    answer = {"target": target, "header": header, "pid": os.getpid(), **places}
    return JSONResponse(answer, headers={"X-Ours": "1", "Keep-Alive": "timeout=5"})


async def upload(request: Request) -> Response:
    """Takes a body piece by piece; tells on disk how much has come."""
    total, digest = 0, hashlib.sha256()
    async for chunk in request.stream():
        total += len(chunk)
        digest.update(chunk)
        if total:
            storage.write(paths.home() / "came", str(total))
    return JSONResponse([total, digest.hexdigest()])


async def events(request: Request) -> Response:
    """Never ends by itself; tells on disk that it was ended."""

    async def lines() -> AsyncIterator[str]:
        try:
            for number in range(10_000):
                yield f"data: {number} at {time.monotonic()}\n\n"
                await asyncio.sleep(0.1)
        finally:
            storage.write(paths.home() / "gone", "")

    return StreamingResponse(lines(), media_type="text/event-stream")


async def die(request: Request) -> Response:
    os._exit(1)


async def half(request: Request) -> Response:
    """Dies in the middle of an answer."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"half"
        await asyncio.sleep(0.2)
        os._exit(1)

    return StreamingResponse(pieces(), headers={"Content-Length": "8"})


ROUTES = {"/": echo, "/echo": echo, "/events": events, "/die": die, "/half": half}


def main() -> None:
    if (paths.home() / "broken").exists():
        sys.exit("broken")
    time.sleep(float(os.environ.get("LIMNER_SLOW", "0")))
    routes = [Route(path, answer) for path, answer in ROUTES.items()]
    routes.append(Route("/gradio_api/upload", upload, methods=["POST"]))
    listener = socket.socket(fileno=int(sys.argv[2]))
    config = uvicorn.Config(Starlette(routes=routes), log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
