"""Loaded by every Python process of the server under test: writes down each host that it looks up or connects to."""

import os
import socket

LOG = os.environ["LIMNER_LOOKUPS"]
_look_up, _connect = socket.getaddrinfo, socket.socket.connect


def _note(host: object) -> None:
    with open(LOG, "a", encoding="utf-8") as log:
        log.write(f"{host}\n")


def getaddrinfo(host: str, *args: object, **kwargs: object) -> object:
    _note(host)
    return _look_up(host, *args, **kwargs)


def connect(self: socket.socket, address: object) -> None:
    if self.family != getattr(socket, "AF_UNIX", None):  # of this machine by its kind
        _note(address[0] if isinstance(address, tuple) else address)
    _connect(self, address)


socket.getaddrinfo = getaddrinfo
socket.socket.connect = connect
