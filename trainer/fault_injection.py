"""Faults on purpose, for tests alone: what a disk, a device or a power cut would do, at a chosen moment.

LIMNER_FAULT=nan@12 (with LIMNER_TEST=1, else nothing of this is heeded) gives step 12 a loss that is no number; oom@7
lets step 7 run out of memory; hang@5 lets step 5 never end, and stuck@2 what follows the second report of a phase;
enospc@2 fails the second durable write of the process as a full disk does; kill@9 ends the process at the ninth moment
of its durable writes, as a power cut does. spawn@1 begins the other processes of a run as Windows does, also where they
could be forked; lost@1 ends the first of them as it begins, and late@1 after it has begun, as it is about to join;
patience@3 lets processes wait for each other no longer than three seconds. Several are separated by commas.
"""

import errno
import itertools
import math
import os
import signal
import time

_writes, _moments, _phases = itertools.count(1), itertools.count(1), itertools.count(1)


def _is_due(kind: str, number: int) -> bool:
    """Tell whether this fault is to strike here; it strikes once."""
    faults = os.environ.get("LIMNER_FAULT", "").split(",")
    if os.environ.get("LIMNER_TEST") != "1" or f"{kind}@{number}" not in faults:
        return False
    os.environ["LIMNER_FAULT"] = ",".join(fault for fault in faults if fault != f"{kind}@{number}")
    return True


def factor(step: int) -> float:
    """Return what the loss of a step is multiplied by: 1, which changes nothing.

    Raises:
        RuntimeError: there is no memory left, in the words of torch.
    """
    if _is_due("oom", step):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: this is a test")
    if _is_due("hang", step):
        _hang()
    return math.nan if _is_due("nan", step) else 1.0


def phase() -> None:
    """A phase was reported."""
    if _is_due("stuck", next(_phases)):
        _hang()


def _hang() -> None:
    while True:
        time.sleep(60)


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


def spawns() -> bool:
    """Tell whether processes are to be spawned, as on systems without fork."""
    return _is_due("spawn", 1)


def follower(rank: int) -> None:
    """Another process of a run begins."""
    if _is_due("lost", rank):
        os._exit(1)


def joining(rank: int) -> None:
    """Another process of a run is about to join the one that leads."""
    if _is_due("late", rank):
        os._exit(1)


def patience(seconds: float) -> float:
    """Return the seconds to wait for another process, or as few as a test wants."""
    faults = os.environ.get("LIMNER_FAULT", "").split(",")
    wanted = [fault.partition("@")[2] for fault in faults if fault.startswith("patience@")]
    return float(wanted[0]) if wanted and os.environ.get("LIMNER_TEST") == "1" else seconds
