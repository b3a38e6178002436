"""A node for a relay that has reached this machine through SSH: answers its calls on standard input and output."""

import os
import sys
import threading
import time
import traceback
from typing import Any, BinaryIO, Literal

from limner_extensions.cluster.node import About, News, Node
from limner_extensions.cluster.wire import Wire
from trainer.errors import UserError, explain_disk
from trainer.runs import Run, cards
from trainer.runs.cards import Wish
from trainer.runs.queue import Claim

GREETING = b"limner node\n"  # whatever a login shell prints comes before it
SILENCE = 120.0  # seconds without a byte after which the relay is taken as gone
CALLS = ("about", "lacks", "receive", "keep", "receive_run", "begin", "news", "read", "claim")
Answer = tuple[Literal["answer", "refused", "failed"], Any]


def main() -> None:
    """Serve a node until the relay ends or is silent for too long; whatever else prints goes to standard error."""
    sys.stdout.flush()
    outgoing = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, outgoing)


def serve(incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Answer the calls that come in, then end the node and what it has begun."""
    with ServedNode() as node:
        silence = _Silence(node)
        wire = Wire(incoming, outgoing, silence.broken)
        try:
            outgoing.write(GREETING)
            outgoing.flush()
            while True:
                with silence:
                    method, arguments, named = wire.receive()
                answer = _answer(node, method, arguments, named)
                with silence:
                    wire.send(answer)
        except (EOFError, OSError, ValueError):  # the connection has ended, or what comes is no message
            return


def _answer(node: "ServedNode", method: str, arguments: list[Any], named: dict[str, Any]) -> Answer:
    if method not in CALLS:
        return "failed", "an unknown call"
    try:
        answer = getattr(node, method)(*arguments, **named)
    except UserError as error:
        return "refused", (error.message, error.remedy)
    except Exception as error:  # any error of this machine is told to the relay, whose run it ends
        traceback.print_exc()
        explained = explain_disk(error)
        return "failed", explained.message if explained else str(error)
    return "answer", _plain(answer)


def _plain(answer: object) -> object:
    """Return an answer of a node without what the wire does not know: dataclasses and sets."""
    if isinstance(answer, About | News):
        return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in vars(answer).items()}
    return answer


class ServedNode(Node):
    """A node that takes its devices from the other runs of this machine, by the locks that they all use."""

    def __init__(self) -> None:
        super().__init__()
        self._claim: Claim | None = None

    def claim(self, devices: int) -> bool:
        """Take devices if they are free, for the worker to come; tell whether all are there. To be called again.

        Raises:
            UserError: this machine has not that many.
        """
        if self._claim is None:
            wish = Wish(1 if len(cards.known()) == 1 else devices)
            cards.check(wish)
            self._claim = Claim(Run(self.home), wish)
        self._claim.update()
        return self._claim.is_complete

    def begin(self) -> None:
        """Start the worker, which sees only the devices that were taken."""
        with cards.visible(self._claim.cards if self._claim else ()):
            super().begin()

    def end(self) -> None:
        """As that of a node; then others may take the devices."""
        super().end()
        if self._claim:
            self._claim.release()

    def __enter__(self) -> "ServedNode":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class _Silence:
    """Ends the node and this process if no byte passes for too long while the relay is waited for.

    A connection that was cut off without a word would keep the device for hours.
    """

    def __init__(self, node: Node) -> None:
        self._node, self._since, self._waits = node, time.monotonic(), False
        threading.Thread(target=self._watch, daemon=True).start()

    def broken(self) -> None:
        """Begin to count again: some bytes have passed."""
        self._since = time.monotonic()

    def __enter__(self) -> None:
        self.broken()
        self._waits = True

    def __exit__(self, *_: object) -> None:
        self._waits = False

    def _watch(self) -> None:
        while not (self._waits and time.monotonic() - self._since > SILENCE):
            time.sleep(min(1.0, SILENCE / 4))
        self._node.end()
        os._exit(1)
