"""Captions by a server that the user named, with the chat API of OpenAI: llama.cpp, Ollama, LM Studio, vLLM and others.

Nothing but the image, scaled down and without metadata, the prompt and the model's name is sent, and only there:
redirects are not followed. A key is read from the environment and never stored or shown; that of OpenAI is sent to
OpenAI alone.
"""

import base64
import io
import os
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from PIL import Image

from trainer import foreign_text
from trainer.captioning.run import CaptionConfig
from trainer.data.captions import one_line
from trainer.errors import UserError
from trainer.i18n import _

SIDE = 1024  # pixels; a larger image is scaled down to it
MAX_BYTES = 2**20  # of an answer
CONNECT_SECONDS, SECONDS = 10.0, 300.0  # until the server takes a request; until its answer is complete
OPENAI = "https://api.openai.com/"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Server:
    """A server with a prompt."""

    client: httpx.Client
    model: str
    prompt: str
    tokens: int
    seconds: float = SECONDS

    def __call__(self, image: Image.Image) -> str:
        """Return the answer of the server.

        Raises:
            UserError: there is none.
        """
        request = {
            "model": self.model,
            "max_tokens": self.tokens,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": self.prompt},
                        {"type": "image_url", "image_url": {"url": data_uri(image)}},
                    ],
                }
            ],
        }
        try:
            status, body = self._post(request)
        except (httpx.TimeoutException, TimeoutError):
            raise UserError("The caption server did not answer in time.", "Check it, then try again.") from None
        except httpx.HTTPError:
            raise UserError(
                "The caption server at {server} cannot be reached.",
                "Start it, or correct its address.",
                server=self.client.base_url.host,
            ) from None
        if status != httpx.codes.OK:
            raise _refusal(status, body)
        return read_answer(body)

    def _post(self, request: dict[str, object]) -> tuple[int, bytes]:
        """Return the status and the body of the answer, of which no more is read than an answer can have.

        Raises:
            TimeoutError: the answer is not complete in time, however it trickles in.
        """
        end, body = time.monotonic() + self.seconds, b""
        with self.client.stream("POST", "chat/completions", json=request) as response:
            for piece in response.iter_bytes():
                body += piece
                if time.monotonic() > end:
                    raise TimeoutError
                if len(body) > MAX_BYTES:
                    break
            return response.status_code, body


def load(settings: CaptionConfig) -> Server:
    """Return a captioner that asks the server of the settings.

    Raises:
        UserError: the address is not one.
    """
    address = check_address(settings.server)
    parts = urlsplit(address)
    client = httpx.Client(
        base_url=address,
        headers=_headers(address),
        timeout=httpx.Timeout(SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=False,
        trust_env=parts.hostname not in _LOOPBACK,  # a proxy is for other machines
    )
    return Server(client, settings.model, settings.prompt, settings.tokens)


def check_address(address: str) -> str:
    """Return the address of a server, such as http://127.0.0.1:1234/v1; one without a path gets /v1.

    Raises:
        UserError: it is not such an address.
    """
    try:
        parts = urlsplit(address.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.username and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(
            "{server!r} is not the address of a server.",
            "Write it as http://127.0.0.1:1234/v1.",
            server=address[:100],
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def data_uri(image: Image.Image) -> str:
    """Return an image as a data URI of a JPEG, scaled down, without its metadata."""
    small = Image.new("RGB", image.size)
    small.paste(image)
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def read_answer(body: bytes) -> str:
    """Return the caption in an answer.

    Raises:
        UserError: there is none.
    """
    try:
        content = foreign_text.parse_json(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        content = None
    if not isinstance(content, str):
        raise UserError(
            "The caption server answered with something that is not a caption.",
            "Check that its address is that of an OpenAI-compatible API, usually ending in /v1.",
        )
    return content.strip()


def _headers(address: str) -> dict[str, str]:
    key = os.environ.get("LIMNER_CAPTION_KEY", "")
    if not key and address.startswith(OPENAI):
        key = os.environ.get("OPENAI_API_KEY", "")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _refusal(status: int, body: bytes) -> UserError:
    """Explain why a server refused a request, with the reason that it gave."""
    try:
        answer = foreign_text.parse_json(body)["error"]
        reason = one_line(str(answer["message"] if isinstance(answer, dict) else answer))[:200]
    except (ValueError, LookupError, TypeError):
        reason = ""
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        remedy = _("Put its key into the environment variable LIMNER_CAPTION_KEY, and start Limner again.")
    elif status == httpx.codes.NOT_FOUND:
        remedy = _("Check its address, which usually ends in /v1, and the name of the model.")
    else:
        remedy = _("See what the server logged, then try again.")
    if reason:
        return UserError("The caption server refused ({status}): {reason}", remedy, status=status, reason=reason)
    return UserError("The caption server refused ({status}).", remedy, status=status)
