"""Modules as Limner's own code sees them on Windows: without what is missing there, and with what is only there."""

import builtins
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import emulated_registry

FLAGS = {"CREATE_NEW_PROCESS_GROUP": 0x200, "CREATE_NO_WINDOW": 0x8000000, "DETACHED_PROCESS": 0x8}
MISSING_MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "crypt", "posix"}
MISSING = {
    os: (
        "fork forkpty setsid getuid geteuid getgid getegid getpgid getpgrp setpgid killpg sched_getaffinity "
        "sched_setaffinity getloadavg chown lchown chroot fchmod fchown O_DIRECTORY O_NOFOLLOW O_NONBLOCK openpty "
        "pipe2 sysconf statvfs fstatvfs nice wait wait3 wait4 WNOHANG mkfifo mknod uname posix_spawn setuid sync"
    ),
    signal: (
        "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGPIPE SIGQUIT SIGCHLD SIGSTOP SIGCONT SIGTSTP SIGPROF setitimer "
        "getitimer ITIMER_PROF ITIMER_REAL alarm pause sigwait pthread_sigmask pthread_kill"
    ),
    socket: "AF_UNIX SO_REUSEPORT send_fds recv_fds",
}


class View(ModuleType):
    """A module as seen from Windows."""

    def __init__(self, module: ModuleType, missing: str = "", **instead: object) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(_module=module, _missing=frozenset(missing.split()), **instead)

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._module, name, value)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A process with Windows' flags: it has the console of its parent, unless it has one of its own or none."""

    def __init__(self, *args: Any, creationflags: int = 0, start_new_session: bool = False, **options: Any) -> None:
        if options.pop("preexec_fn", None) or options.pop("pass_fds", None):
            raise ValueError("preexec_fn and pass_fds are not supported on Windows")
        if (options.get("text") or options.get("universal_newlines")) and not sys.flags.utf8_mode:
            options["encoding"] = options.get("encoding") or "cp1252"
        apart = bool(creationflags & sum(FLAGS.values()))
        super().__init__(*args, start_new_session=apart, **options)

    def send_signal(self, sig: int) -> None:
        """End the process: Windows has no signals between processes."""
        super().send_signal(signal.SIGKILL)


class Socket(socket.socket):
    """A socket with Windows' options: with SO_REUSEADDR two programs may take the same port."""

    def setsockopt(self, *args: Any) -> None:
        """Set an option, or what comes closest to it."""
        if args[:2] == (socket.SOL_SOCKET, SO_EXCLUSIVEADDRUSE):
            return  # what other systems do by themselves
        if args[:2] == (socket.SOL_SOCKET, socket.SO_REUSEADDR):
            args = (socket.SOL_SOCKET, socket.SO_REUSEPORT, *args[2:])
        super().setsockopt(*args)


SO_EXCLUSIVEADDRUSE = ~socket.SO_REUSEADDR


def _kill(pid: int, number: int) -> None:
    if number in (0, 1):
        raise OSError(22, "The parameter is incorrect")  # CTRL_C_EVENT and CTRL_BREAK_EVENT, for groups alone
    os.kill(pid, signal.SIGKILL)


def _get_context(method: str | None = None) -> Any:
    if method not in (None, "spawn"):
        raise ValueError(f"cannot find context for {method!r}")
    return multiprocessing.get_context("spawn")


def install(checkout: Path) -> None:
    """Give the modules of a checkout, but for its tests, the view of Windows."""
    parent = os.getppid()  # whoever takes over an orphan, Windows names the first
    views = {
        "os": View(os, MISSING[os], name="nt", kill=_kill, getppid=lambda: parent),
        "sys": View(sys, "setdlopenflags", platform="win32"),
        "signal": View(signal, MISSING[signal], SIGBREAK=21),
        "socket": View(socket, MISSING[socket], socket=Socket, SO_EXCLUSIVEADDRUSE=SO_EXCLUSIVEADDRUSE),
        "multiprocessing": View(multiprocessing, get_context=_get_context),
        "subprocess": View(subprocess, Popen=Popen, **FLAGS),
    }
    ours = (f"{checkout}/trainer/", f"{checkout}/ui/", f"{checkout}/app.py")
    real_import = builtins.__import__

    def import_module(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level == 0 and globals and str(globals.get("__file__") or "").startswith(ours):
            top = name.partition(".")[0]
            if top in MISSING_MODULES:
                raise ModuleNotFoundError(f"No module named {top!r} on Windows", name=top)
            if name == "winreg":
                return emulated_registry.module
            module = real_import(name, globals, locals, fromlist, level)  # with the submodules that are asked for
            return views.get(name, module)
        return real_import(name, globals, locals, fromlist, level)

    builtins.__import__ = import_module
