"""Start the page: arguments, one server per home folder, a free port, the guard, and then Gradio or the door to it."""

import argparse
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from trainer import __version__, paths, storage
from trainer.errors import UserError
from trainer.i18n import say
from ui.server import accounts

if TYPE_CHECKING:
    import uvicorn

    from ui.server.security import App

PORTS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit code."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what uvicorn hands on after it has shut down
    os.environ["LIMNER_HOME"] = str(paths.home().resolve())  # the same folder for workers, wherever they run
    try:
        if options.add_person or options.remove_person:
            tell_of(options)
            return 0
        lock = hold_home()
        if options.socket is None:
            tell_of_room()
        with listen(options) as listener:
            make_server(options, listener).run(sockets=[listener])
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
    parser.add_argument(
        "--add-person", metavar="NAME", help="give somebody a page and a password of their own, and end"
    )
    parser.add_argument("--remove-person", metavar="NAME", help="take this away again; their folder stays")
    parser.add_argument("--socket", type=int, help=argparse.SUPPRESS)  # where the door of several people calls us
    parser.add_argument("--version", action="version", version=f"Limner {__version__}")
    options = parser.parse_args(arguments)
    if options.listen and options.host == "127.0.0.1":
        options.host = "0.0.0.0"  # asked for by name, and only with a password
    return options


def tell_of(options: argparse.Namespace) -> None:
    """Add or remove a person, and say what comes of it. A password is said here and nowhere else.

    Raises:
        UserError: the name is none, or the register cannot be written.
    """
    try:
        if options.add_person:
            name, password = options.add_person, accounts.add(options.add_person)
            print(say("Password of {name}: {password}", name=name, password=password))
        if options.remove_person:
            accounts.remove(options.remove_person)
            folder = accounts.home(options.remove_person)
            print(
                say("{name} cannot log in any more. What they made stays in {folder}.", name=folder.name, folder=folder)
            )
    except OSError:
        raise UserError(
            "The home folder cannot be written to.", "Check its permissions and the room on the disk."
        ) from None


def hold_home() -> FileLock:
    """Take the home folder for this server.

    Raises:
        UserError: another server has it, or it cannot be written to.
    """
    try:
        paths.outputs().mkdir(parents=True, exist_ok=True)
        paths.datasets().mkdir(parents=True, exist_ok=True)
        lock, number = FileLock(paths.outputs() / ".page.lock"), paths.outputs() / ".page.pid"
        lock.acquire(timeout=0)
        storage.write(number, str(os.getpid()))  # not in the lock's own file, which each who tries it empties
        for folder in (one for one in paths.datasets().iterdir() if one.is_dir()):
            storage.remove_leftovers(folder, folder / ".cache" / "thumbnails", folder / ".cache" / "undo")
            storage.empty_bin(folder)
        storage.remove_leftovers(paths.outputs(), *(paths.outputs() / name for name in (".pictures", ".adapters")))
        storage.empty_bin(paths.outputs())
    except Timeout:
        raise UserError(
            "Limner is running already for this folder, as process {number}.",
            "Use the page that is open, or end that server first.",
            number=number.read_text() if number.is_file() else "?",
        ) from None
    except OSError:
        raise UserError(
            "The folders datasets and outputs cannot be written to.",
            "Check their permissions and the room on the disk.",
        ) from None
    return lock


def tell_of_room() -> None:
    """Say it at the start if the disk is so full that uploads will be refused; what is there can be worked with."""
    if not storage.usable_space(paths.outputs()):
        free, floor = storage.free_space(paths.outputs()) // 2**20, storage.RESERVED // 2**20
        told = say(
            "The disk has {free} MB left. Pictures can be added when there are {floor} MB.", free=free, floor=floor
        )
        print(told)


def listen(options: argparse.Namespace) -> socket.socket:
    """The socket to be called at: of an address, or the one that the door of several people has made for us."""
    if options.socket is None:
        return bind(options.host, options.port)
    threading.Thread(target=_end_with_the_door, daemon=True).start()
    return socket.socket(fileno=options.socket)


def _end_with_the_door() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing ever comes, but its end when the door has ended, by whatever way
    os.kill(os.getpid(), signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on the port, or on the next free one.

    Raises:
        UserError: none of them is free, or there is no such address.
    """
    for candidate in range(port, port + PORTS + 1) if port else [0]:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            # Named as TCP, or asyncio leaves Nagle's algorithm on, and answers wait 40 ms for the browser's kernel.
            listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
    """Tell whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def choose_password(options: argparse.Namespace, *, several: bool) -> str:
    """The password of the page; "" if only this machine can reach it and none is set, or if each person has their own.

    Raises:
        UserError: the address can be reached from outside, and --listen was not given; or there are both passwords.
    """
    password = os.environ.get("LIMNER_PASSWORD", "")
    if several and password:
        raise UserError(
            "LIMNER_PASSWORD is one password for everybody, but people.toml has people with their own.",
            "Unset it, or remove the people with --remove-person.",
        )
    if is_loopback(options.host):
        return password
    if not options.listen:
        raise UserError(
            "{host} can be reached from other machines.", "Add --listen if you want that.", host=options.host
        )
    if not several and not password:
        password = secrets.token_urlsafe(12)
        print(f"Password for the page: {password}")
    return password


def prepare_environment() -> None:
    """Tell Gradio, before it is imported, to look nothing up and to keep uploads in our own folder."""
    uploads = paths.uploads()
    shutil.rmtree(uploads, ignore_errors=True)
    uploads.mkdir(mode=0o700)
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False", GRADIO_SHARE="False", GRADIO_RUN_HISTORY="False",
        GRADIO_TEMP_DIR=str(uploads), HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1",
    )  # fmt: skip


def make_server(options: argparse.Namespace, listener: socket.socket) -> "uvicorn.Server":
    """Build what is served on this socket, behind the security middleware.

    Raises:
        UserError: the passwords and the address do not go together, or several people cannot be served here.
    """
    several = options.socket is None and bool(accounts.everybody())
    password = choose_password(options, several=several) if options.socket is None else ""
    app = make_door(options) if several else make_page(options, password)
    import uvicorn  # noqa: PLC0415 - slow, so not before the arguments are known to be good

    shown = options.host if is_loopback(options.host) else socket.gethostname()

    class Server(uvicorn.Server):
        """Says where it is once it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if options.socket is None:
                print(f"Limner is running at http://{shown}:{listener.getsockname()[1]}", flush=True)

    return Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False, lifespan="on")
    )


def make_page(options: argparse.Namespace, password: str) -> "App":
    """The page behind its guard. The door calls it by whatever name it was called itself, and has asked who it is."""
    prepare_environment()
    from ui import page  # noqa: PLC0415 - Gradio reads its environment when it is imported
    from ui.server import media  # noqa: PLC0415 - Gradio reads its environment when it is imported
    from ui.server.security import Guard  # noqa: PLC0415

    app = page.make_app(leave=bool(password) or options.socket is not None)
    where = {"hosts": None} if options.socket is not None else names(options)
    return Guard(app, password=password, room=media.upload_room, **where)


def make_door(options: argparse.Namespace) -> "App":
    """The door to the pages of several people, behind its guard. Neither Gradio nor torch is needed for it.

    Raises:
        UserError: this system has not what it takes.
    """
    from ui.server.per_user_proxy import Door  # noqa: PLC0415
    from ui.server.security import Guard  # noqa: PLC0415

    if not hasattr(socket, "AF_UNIX"):
        raise UserError("Several people can be served on Linux and macOS only.", "Remove people.toml to go on alone.")
    return Guard(Door(), register=accounts.everybody, **names(options))


def names(options: argparse.Namespace) -> dict[str, Any]:
    """By what names browsers may call the server, as the guard takes them."""
    from ui.server.security import LOOPBACK  # noqa: PLC0415

    listening = not is_loopback(options.host)
    hosts = LOOPBACK | {options.host, *options.host_name} | ({socket.gethostname().lower()} if listening else set())
    return {"hosts": frozenset(hosts), "any_address": listening}


if __name__ == "__main__":
    sys.exit(main())
