"""Faults on purpose, for tests alone: what a disk, a device or a power cut would do, at a chosen moment.

LIMNER_FAULT=nan@12 (with LIMNER_TEST=1, else nothing of this is heeded) gives step 12 a loss that is no number; oom@7
lets step 7 run out of memory; hang@5 lets step 5 never end; enospc@2 fails the second durable write of the process as
a full disk does; kill@9 ends the process at the ninth moment of its durable writes, as a power cut does.
"""

import errno
import itertools
import math
import os
import signal
import time

_writes, _moments = itertools.count(1), itertools.count(1)


def _is_due(kind: str, number: int) -> bool:
    """Whether this fault is wanted here; it strikes once."""
    if os.environ.get("LIMNER_TEST") != "1" or os.environ.get("LIMNER_FAULT") != f"{kind}@{number}":
        return False
    del os.environ["LIMNER_FAULT"]
    return True


def factor(step: int) -> float:
    """What the loss of a step is multiplied by: 1, which changes nothing.

    Raises:
        RuntimeError: there is no memory left, in the words of torch.
    """
    if _is_due("oom", step):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: this is a test")
    if _is_due("hang", step):
        while True:
            time.sleep(60)
    return math.nan if _is_due("nan", step) else 1.0


def write() -> None:
    """A durable write begins.

    Raises:
        OSError: the disk is full.
    """
    if _is_due("enospc", next(_writes)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def moment() -> None:
    """Another moment of a durable write is over, at which the machine may end."""
    if _is_due("kill", next(_moments)):
        os.kill(os.getpid(), signal.SIGKILL)
