"""Start the page: arguments, one server per home folder, a free port, the guard, and then Gradio."""

import argparse
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from trainer import __version__, files
from trainer.errors import UserError

if TYPE_CHECKING:
    import uvicorn

PORTS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit code."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what uvicorn hands on after it has shut down
    os.environ["LIMNER_HOME"] = str(files.home().resolve())  # the same folder for workers, wherever they run
    try:
        lock = hold_home()
        with bind(options.host, options.port) as listener:
            password = choose_password(options)
            server = make_server(options, listener, password)
            server.run(sockets=[listener])
        lock.release()
    except UserError as error:
        print(f"{error.message} {error.remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="app.py", description="Limner: teach Stable Diffusion a character or a style."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port; if it is taken, one of the next 20 is used")
    parser.add_argument(
        "--listen", action="store_true",
        help="also serve other machines; needs a password: that in LIMNER_PASSWORD, or one that is made and shown",
    )  # fmt: skip
    parser.add_argument(
        "--host-name", action="append", default=[], metavar="NAME", help="a name by which browsers may call the server"
    )
    parser.add_argument("--version", action="version", version=f"Limner {__version__}")
    options = parser.parse_args(arguments)
    if options.listen and options.host == "127.0.0.1":
        options.host = "0.0.0.0"  # asked for by name, and only with a password
    return options


def hold_home() -> FileLock:
    """Take the home folder for this server.

    Raises:
        UserError: another server has it, or it cannot be written to.
    """
    try:
        files.outputs().mkdir(parents=True, exist_ok=True)
        files.datasets().mkdir(parents=True, exist_ok=True)
        lock = FileLock(files.outputs() / ".page.lock")
        lock.acquire(timeout=0)
        for folder in (one for one in files.datasets().iterdir() if one.is_dir()):
            files.sweep(folder, folder / ".cache" / "thumbnails", folder / ".cache" / "undo")
            files.empty_bin(folder)
        files.sweep(files.outputs(), *(files.outputs() / name for name in (".pictures", ".adapters")))
        files.empty_bin(files.outputs())
    except Timeout:
        raise UserError(
            "Limner is running already for this folder.", "Use the page that is open, or end that server first."
        ) from None
    except OSError:
        raise UserError(
            "The folders datasets and outputs cannot be written to.",
            "Check their permissions and the room on the disk.",
        ) from None
    return lock


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on the port, or on the next free one.

    Raises:
        UserError: none of them is free, or there is no such address.
    """
    for candidate in range(port, port + PORTS + 1) if port else [0]:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except (OSError, OverflowError):
            continue
        if candidate not in (port, 0):
            print(f"Port {port} is taken; using {candidate}.")
        return listener
    raise UserError(
        "No port from {port} to {last} can be used on {host}.",
        "Choose another one with --port, or another --host.",
        port=port,
        last=port + PORTS,
        host=host,
    )


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def choose_password(options: argparse.Namespace) -> str:
    """The password of the page; "" if only this machine can reach it and none is set.

    Raises:
        UserError: the address can be reached from outside, and --listen was not given.
    """
    password = os.environ.get("LIMNER_PASSWORD", "")
    if is_loopback(options.host):
        return password
    if not options.listen:
        raise UserError(
            "{host} can be reached from other machines.", "Add --listen if you want that.", host=options.host
        )
    if not password:
        password = secrets.token_urlsafe(12)
        print(f"Password for the page: {password}")
    return password


def prepare_environment() -> None:
    """Tell Gradio, before it is imported, to look nothing up and to keep uploads in our own folder."""
    uploads = files.uploads()
    shutil.rmtree(uploads, ignore_errors=True)
    uploads.mkdir(mode=0o700)
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False", GRADIO_SHARE="False", GRADIO_RUN_HISTORY="False",
        GRADIO_TEMP_DIR=str(uploads), HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1",
    )  # fmt: skip


def make_server(options: argparse.Namespace, listener: socket.socket, password: str) -> "uvicorn.Server":
    """The page behind its guard, on this socket."""
    prepare_environment()
    import uvicorn  # noqa: PLC0415 - slow, so not before the arguments are known to be good

    from ui import media, page  # noqa: PLC0415 - Gradio reads its environment when it is imported
    from ui.guard import LOOPBACK, Guard  # noqa: PLC0415

    listening = not is_loopback(options.host)
    hosts = LOOPBACK | {options.host, *options.host_name} | ({socket.gethostname().lower()} if listening else set())
    app = Guard(
        page.make_app(), hosts=frozenset(hosts), any_address=listening, password=password, room=media.upload_room
    )
    shown = options.host if not listening else socket.gethostname()
    address = f"http://{shown}:{listener.getsockname()[1]}"

    class Server(uvicorn.Server):
        """Says where it is once it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            print(f"Limner is running at {address}", flush=True)

    return Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False, lifespan="on")
    )


if __name__ == "__main__":
    sys.exit(main())
