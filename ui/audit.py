"""Audit log: one line for each login, failed login, start, stop, deletion and download, in `outputs/.audit.log`."""

import json
import logging
import threading
import time
from functools import cache
from logging.handlers import RotatingFileHandler

from trainer import paths

MOST = 2 * 2**20  # bytes of a log, after which the next one begins
KEPT = 3  # older logs
_opening = threading.Lock()


def record(action: str, *, what: str = "", address: str = "") -> None:
    """Add a line; what is empty is left out."""
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "action": action}
    entry |= {key: value for key, value in (("what", what), ("address", address)) if value}
    with _opening:  # the cache would let two first entries at once open the log twice
        logger = _logger(str(paths.outputs()))
    logger.info("%s", json.dumps(entry, ensure_ascii=False))


@cache
def _logger(folder: str) -> logging.Logger:
    paths.outputs().mkdir(parents=True, exist_ok=True)
    logger = logging.Logger("limner.audit", logging.INFO)  # not a child of any, so that nothing else prints it
    handler = RotatingFileHandler(f"{folder}/.audit.log", maxBytes=MOST, backupCount=KEPT, encoding="utf-8", delay=True)
    logger.addHandler(handler)
    return logger
