"""Start the page: options, one server per home folder, a free port, and the web application behind the middleware.

`python app.py` calls this, as does `python -m ui.launch`, where there is only the installed package.
"""

import argparse
import ctypes
import ipaddress
import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from trainer import __version__, paths, processes, storage
from trainer.data import dataset
from trainer.errors import UserError
from trainer.i18n import _
from trainer.runs import control
from ui.server import passwords

if TYPE_CHECKING:
    import uvicorn

    from ui.server.security import App

PORTS = 20
ARENA_MAX = -8  # M_ARENA_MAX of glibc's malloc.h


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; returns the exit code."""
    processes.print_all_letters()
    options = parse_options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again after its shutdown
    os.environ["LIMNER_HOME"] = str(paths.home().resolve())  # the same folder for workers, wherever they run
    _share_memory()
    try:
        if options.cluster:
            os.environ["LIMNER_CLUSTER"] = options.cluster
        lock = lock_home()
        warn_if_disk_is_full()
        note_old_accounts()
        with bind(options.host, options.port) as listener:
            server = make_server(options, listener)
            if not options.no_resume:
                for run in control.resume_cut():
                    print(_("{run} was cut off and goes on.", run=run.id))
            server.run(sockets=[listener])
        lock.release()
    except UserError as error:
        print(f"{error.message} {error.remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


def _share_memory() -> None:
    """Let threads take memory from the same two arenas; from one each, what 40 of them have freed stays with them."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no arenas
            ctypes.CDLL(None).mallopt(ARENA_MAX, 2)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="app.py", description="Limner: teach Stable Diffusion a character or a style."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port; if it is taken, one of the next 20 is used")
    listen_help = "also serve other machines; needs a password: LIMNER_PASSWORD, or one that is generated and printed"
    parser.add_argument("--listen", action="store_true", help=listen_help)
    parser.add_argument(
        "--host-name",
        action="append",
        default=[],
        metavar="NAME",
        help="host name by which browsers reach the server",
    )
    parser.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address of a proxy in front of the server, whose X-Forwarded-For and X-Forwarded-Proto are believed",
    )
    no_token_help = "let every user of this machine open the page: the address needs no token"
    parser.add_argument("--no-token", action="store_true", help=no_token_help)
    new_token_help = "make a new token, and a new password if it was generated: earlier ones no longer open the page"
    parser.add_argument("--new-token", action="store_true", help=new_token_help)
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="offer to train on another machine (ssh://HOST) or on a cluster of Ray (HOST:6379)",
    )
    parser.add_argument("--no-resume", action="store_true", help="leave runs that were cut until you resume them")
    parser.add_argument("--version", action="version", version=f"Limner {__version__}")
    options = parser.parse_args(arguments)
    if options.listen and options.host == "127.0.0.1":
        options.host = "0.0.0.0"  # explicitly requested, and only with a password
    return options


def lock_home() -> FileLock:
    """Lock the home folder for this server, and delete what earlier ones left behind.

    Raises:
        UserError: another server uses it, or it cannot be written to.
    """
    outputs = paths.outputs()
    try:
        storage.keep_private()
        outputs.mkdir(parents=True, exist_ok=True)
        dataset.install_examples()
        paths.datasets().mkdir(parents=True, exist_ok=True)
        storage.keep_private(paths.datasets(), outputs)
        lock, number = FileLock(outputs / ".page.lock"), outputs / ".page.pid"
        lock.acquire(timeout=0)
        storage.write(number, str(os.getpid()))  # not in the lock file, which every attempt to lock it empties
        _clean_up()
    except Timeout:
        raise UserError(
            "Limner is already running for this folder, as process {number}.",
            "Use the page that is open, or stop that server first.",
            number=number.read_text(encoding="utf-8") if number.is_file() else "?",
        ) from None
    except OSError:
        raise UserError(
            "The folders datasets and outputs cannot be written to.",
            "Check their permissions and the free disk space.",
        ) from None
    return lock


def _clean_up() -> None:
    for folder in paths.datasets().iterdir():
        if folder.is_dir():
            storage.remove_leftovers(folder, folder / ".cache" / "thumbnails", folder / ".cache" / "undo")
            storage.empty_bin(folder)
    storage.remove_leftovers(paths.datasets(), paths.outputs(), paths.sample_images(), paths.adapters())
    storage.empty_bin(paths.outputs())
    storage.empty_bin(paths.datasets())


def warn_if_disk_is_full() -> None:
    """Print a warning if the disk is so full that uploads will be refused; everything else still works."""
    if not storage.usable_space(paths.outputs()):
        free, floor = storage.free_space(paths.outputs()) // 2**20, storage.RESERVED // 2**20
        message = _(
            "Only {free} MB of disk space is left. Adding images needs at least {floor} MB.",
            free=free,
            floor=floor,
        )
        print(message)


def note_old_accounts() -> None:
    """Print a note if a version with accounts used this home folder."""
    if (paths.home() / "people.toml").exists():
        print(_("Limner no longer reads the accounts in people.toml: see docs/several-people.md."))


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket on the port, or on the next free one.

    Raises:
        UserError: none of them is free, or there is no such address.
    """
    for candidate in range(port, port + PORTS + 1) if port else [0]:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            # Named as TCP, or asyncio leaves Nagle's algorithm on, and answers wait 40 ms for the browser's kernel.
            listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            if sys.platform == "win32":  # where SO_REUSEADDR lets two servers have the same port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except (OSError, OverflowError):
            continue
        if candidate not in (port, 0):
            print(f"Port {port} is taken; using {candidate}.")
        return listener
    raise UserError(
        "No port from {port} to {last} is available on {host}.",
        "Choose another one with --port, or another address with --host.",
        port=port,
        last=port + PORTS,
        host=host,
    )


def is_loopback(host: str) -> bool:
    """Return True if an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def choose_password(options: argparse.Namespace) -> str:
    """Return the password of the page; "" if it needs none.

    Raises:
        UserError: the address can be reached from outside without --listen, or the password is weak.
    """
    password = os.environ.get("LIMNER_PASSWORD", "")
    if password and passwords.is_weak(password):
        raise UserError(
            "LIMNER_PASSWORD is easy to guess.",
            "Use at least 8 characters that are not a common password, or unset it: --listen makes a good one.",
        )
    if is_loopback(options.host):
        return password
    if not options.listen:
        raise UserError(
            "{host} can be reached from other machines.", "Add --listen if you want that.", host=options.host
        )
    if not password:
        from ui.server import address_token

        password = address_token.read_password(renew=options.new_token)
        print(f"Password for the page: {password}")
    return password


def prepare_environment() -> None:
    """Configure Gradio before it is imported: no network access, and uploads in our own folder.

    The home folder becomes the current one, so that paths of uploads, which browsers get to see, can begin there.
    """
    os.chdir(paths.home())
    uploads = paths.uploads()
    shutil.rmtree(uploads, ignore_errors=True)
    uploads.mkdir(mode=0o700, exist_ok=True)  # still there if Windows keeps a file that is open
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_SHARE="False",
        GRADIO_RUN_HISTORY="False",
        GRADIO_TEMP_DIR=str(uploads),
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        DO_NOT_TRACK="1",
    )


def make_server(options: argparse.Namespace, listener: socket.socket) -> "uvicorn.Server":
    """Create the server of the page for this socket.

    Raises:
        UserError: the password and the address do not go together.
    """
    token = ""
    password = choose_password(options)
    if not password and not options.no_token:
        from ui.server import address_token

        token = address_token.read(renew=options.new_token)
    app = make_page(options, password, token)
    import uvicorn  # slow, so only when the options are known to be good

    host = options.host if is_loopback(options.host) else next(iter(options.host_name), socket.gethostname())

    class Server(uvicorn.Server):
        """Prints its address once it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            address = f"http://{host}:{listener.getsockname()[1]}"
            print(f"Limner is running at {address}{f'/?token={token}' if token else ''}", flush=True)

    from ui.server import connections

    connections.limit_logs()
    return Server(
        uvicorn.Config(
            app,
            http=connections.LimitedProtocol,
            log_level="warning",
            timeout_graceful_shutdown=2,
            server_header=False,
            lifespan="on",
            proxy_headers=bool(options.trusted_proxy),
            forwarded_allow_ips=options.trusted_proxy,
        )
    )


def make_page(options: argparse.Namespace, password: str, token: str) -> "App":
    """Create the page behind its middleware."""
    prepare_environment()
    # Gradio reads its environment when it is imported.
    from ui import page
    from ui.server.address_token import TokenGate
    from ui.server.security import SecurityMiddleware
    from ui.state import pending_uploads

    app: App = page.make_app(log_out=bool(password))
    if token:
        app = TokenGate(app, token)
    return SecurityMiddleware(app, password=password, upload_room=pending_uploads.room, **allowed_hosts(options))


def allowed_hosts(options: argparse.Namespace) -> dict[str, Any]:
    """Return the host names by which browsers may reach the server, as arguments of the middleware."""
    from ui.server.security import LOOPBACK

    hosts = LOOPBACK | {options.host, *options.host_name}
    is_public = not is_loopback(options.host)
    if is_public:
        hosts |= {socket.gethostname().lower()}
    return {"hosts": frozenset(hosts), "any_address": is_public}


if __name__ == "__main__":
    sys.exit(main())
