"""Inject faults, for tests only: full and broken disks, lost power, hanging devices, lost processes.

LIMNER_FAULT is a comma-separated list of faults; it is ignored unless LIMNER_TEST=1.

    nan@12       step 12 has a loss that is not a number
    oom@7        step 7 runs out of memory
    full@1       the optimizer runs out of memory in step 1
    fault@3      the device fails at its work in step 3
    hang@5       step 5 never ends
    stuck@2      the run hangs after the second report of a phase
    enospc@2     the second durable write of the process fails as on a full disk
    eio@2        the second durable write of the process fails as it is synced, as on a broken disk
    kill@9       the process is killed at the ninth crash point of its durable writes, as in a power cut
    spawn@1      the other processes of a run are spawned, as on Windows, even where they could be forked
    lost@1       the first of them exits as it starts
    late@1       the first of them exits after it has started, as it is about to join
    patience@3   processes wait for each other for at most three seconds
    cards@2      the machine has two cards, which are chosen between like real ones; computing is on the CPU
"""

import errno
import itertools
import math
import os
import signal
import sys
import time

_NO_MEMORY = "DefaultCPUAllocator: not enough memory: this is a test"
_writes, _syncs, _crash_points, _phases = (itertools.count(1) for _ in range(4))


def _is_due(kind: str, number: int) -> bool:
    """Return True if this fault is due now; each happens once."""
    faults = os.environ.get("LIMNER_FAULT", "").split(",")
    if os.environ.get("LIMNER_TEST") != "1" or f"{kind}@{number}" not in faults:
        return False
    os.environ["LIMNER_FAULT"] = ",".join(fault for fault in faults if fault != f"{kind}@{number}")
    return True


def loss_factor(step: int) -> float:
    """Return the factor on the loss of a step: 1, which changes nothing, or nan.

    Raises:
        RuntimeError: as torch raises it when memory runs out, or a card fails.
    """
    if _is_due("oom", step):
        raise RuntimeError(_NO_MEMORY)
    if _is_due("fault", step):
        raise RuntimeError("CUDA error: unspecified launch failure: this is a test")
    if _is_due("hang", step):
        _hang()
    return math.nan if _is_due("nan", step) else 1.0


def on_advance(step: int) -> None:
    """Fail as the optimizer takes a step, if that is due.

    Raises:
        RuntimeError: as torch raises it when memory runs out.
    """
    if _is_due("full", step):
        raise RuntimeError(_NO_MEMORY)


def on_phase() -> None:
    """Hang after the report of a phase, if that is due."""
    if _is_due("stuck", next(_phases)):
        _hang()


def _hang() -> None:
    while True:
        time.sleep(60)


def on_write() -> None:
    """Fail at the start of a durable write, if that is due.

    Raises:
        OSError: the disk is full.
    """
    if _is_due("enospc", next(_writes)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def on_sync() -> None:
    """Fail as a durable write is synced, if that is due.

    Raises:
        OSError: the disk is broken.
    """
    if _is_due("eio", next(_syncs)):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def crash_point() -> None:
    """Kill this process between two operations of a durable write, if that is due."""
    if _is_due("kill", next(_crash_points)):
        if sys.platform == "win32":
            os.kill(os.getpid(), signal.SIGTERM)  # is as sudden there
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def must_spawn() -> bool:
    """Return True if processes are to be spawned, as on systems without fork."""
    return _is_due("spawn", 1)


def on_rank_start(rank: int) -> None:
    """Exit as another process of a run starts, if that is due."""
    if _is_due("lost", rank):
        os._exit(1)


def on_rank_join(rank: int) -> None:
    """Exit as another process of a run is about to join the main process, if that is due."""
    if _is_due("late", rank):
        os._exit(1)


def timeout(seconds: float) -> float:
    """Return the seconds to wait for another process, or as few as a test wants."""
    return _setting("patience") or seconds


def cards() -> int:
    """Return the number of cards that this machine has for a test; 0 if there is no test of that."""
    return int(_setting("cards"))


def _setting(kind: str) -> float:
    """Return the number of a fault that lasts; 0 if a test does not want it."""
    if os.environ.get("LIMNER_TEST") != "1":
        return 0.0
    faults = dict(fault.split("@", 1) for fault in os.environ.get("LIMNER_FAULT", "").split(",") if "@" in fault)
    return float(faults.get(kind, 0))
