"""Confine a process of our own that reads what a stranger made: it writes to its folders alone, and has no network.

Such a process starts as this module, while it has a single thread, gives up what it does not need, and then runs
another one. Linux offers Landlock, by which a process can write below some folders only, and seccomp, by which it can
connect to nothing. Where the system lacks one of them, or is another one, `caution` says so; what it has
never fails silently.
"""

import ctypes
import errno
import importlib
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from trainer.i18n import _

# Devices that models compute on, and those that any program may write to.
DEVICES = ("null", "zero", "nvidia*", "nvidia-caps/*", "dri/*", "kfd", "dxg")
ALSO_WRITABLE = "LIMNER_ALSO_WRITABLE"  # a folder for what measures the tests' coverage

# Numbers and structures of the kernel's interface: include/uapi/linux in its source.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # of Landlock, on every processor
_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
_MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 13))
_TCP, _SCOPES = 0b11, 0b11  # connect and bind; signals and abstract sockets
_SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES, _FILTER = 1, 22, 38, 2
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_UNIX = 1
_KILLED, _AS_PATH = 9, 0o10000000
_KEPT_CAPABILITIES = 0b110  # to read and write files of other users, as root does in a container


@dataclass(frozen=True)
class _Processor:
    """A processor's number, and the numbers of system calls on it.

    Of `refused`, those that change modes and owners are not covered by Landlock, and with io_uring sockets would need
    no call. CUDA listens on a socket of its own, which reaches nobody.
    """

    number: int
    set_capabilities: int
    socket: int
    send_to: int
    refused: tuple[int, ...]


_PROCESSORS = {
    # truncate chmod fchmod chown fchown lchown fchownat fchmodat fchmodat2 setxattr lsetxattr fsetxattr setxattrat
    # connect sendmsg sendmmsg io_uring_setup ptrace process_vm_writev
    "x86_64": _Processor(
        *(0xC000003E, 126, 41, 44),
        (76, 90, 91, 92, 93, 94, 260, 268, 452, 188, 189, 190, 463, 42, 46, 307, 425, 101, 311),
    ),
    "aarch64": _Processor(  # has no chmod, chown and lchown
        *(0xC00000B7, 91, 198, 206),
        (45, 52, 55, 54, 53, 452, 5, 6, 7, 463, 203, 211, 269, 425, 117, 271),
    ),
}


def command(program: Sequence[str], writable: Sequence[Path]) -> list[str]:
    """Return the command that runs a module of ours, whose function `main` it calls, confined.

    Args:
        program: the module and its arguments.
        writable: folders that it may write to. They are made if they are missing: a rule needs a folder that is there.
    """
    for folder in writable:
        folder.mkdir(parents=True, exist_ok=True)
    return [sys.executable, "-m", "trainer.confinement", *map(str, writable), "--", *program]


def caution() -> str:
    """Return a sentence about what this system lacks to confine a process; "" if it lacks nothing."""
    if _landlock_version() and _has_seccomp():
        return ""
    if _landlock_version():
        gap = _("This system lacks seccomp, which would keep a model from reaching the network.")
    elif _has_seccomp():
        gap = _("This system lacks Landlock, which would keep a model from writing to your files.")
    else:
        gap = _("This system has no means to keep a model from writing to your files and from reaching the network.")
    return f"{gap} {_('Use models of makers that you trust.')}"


def main(arguments: Sequence[str]) -> None:
    """Confine this process, then run the module that the arguments name after the folders that it may write to."""
    end = arguments.index("--")
    folders, module = arguments[:end], arguments[end + 1]
    if sys.platform == "linux":
        confine([Path(folder) for folder in (*folders, os.environ.get(ALSO_WRITABLE, "")) if folder])
    sys.argv = list(arguments[end + 1 :])
    importlib.import_module(module).main()


def confine(writable: Sequence[Path]) -> None:
    """Give up for good all that `caution` does not name; the process ends when the one that started it does.

    Raises:
        RuntimeError: another thread is running, which would not be confined.
        OSError: the system refuses it.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a process is confined before it has a second thread")
    _prctl(_SET_PDEATHSIG, _KILLED)
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
    if version := _landlock_version():
        _restrict_writing(version, writable)
    if _has_seccomp():
        _drop_capabilities()
        _refuse_calls()


@cache
def _landlock_version() -> int:
    """Return the version of Landlock that the system offers; 0 = none."""
    if sys.platform == "linux":
        version: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
        return max(0, version)
    else:
        return 0


@cache
def _has_seccomp() -> bool:
    """Return True if filters of system calls can be set: then a missing one is a wrong address, not a wrong request."""
    if sys.platform == "linux" and platform.machine() in _PROCESSORS:
        return _libc().prctl(_SET_SECCOMP, _FILTER, None, 0, 0) == -1 and ctypes.get_errno() == errno.EFAULT
    else:
        return False


def _restrict_writing(version: int, writable: Sequence[Path]) -> None:
    """Refuse all writing but below some folders and to devices; of newer versions also TCP and signals to others."""
    rights = _WRITE_FILE | _MAKE_AND_REMOVE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    fields = [rights, *([_TCP] if version >= 4 else []), *([_SCOPES] if version >= 6 else [])]
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    devices = [device for pattern in DEVICES for device in Path("/dev").glob(pattern)]
    for path in (*writable, *devices):
        descriptor = os.open(path, _AS_PATH)
        allowed = rights if path.is_dir() else rights & (_WRITE_FILE | _TRUNCATE)
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, descriptor), 0)
        os.close(descriptor)
    _call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _drop_capabilities() -> None:
    """Give up what root may do beyond files, such as to load modules of the kernel; of others there is nothing."""
    call = _PROCESSORS[platform.machine()].set_capabilities
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kept = _KEPT_CAPABILITIES & int(status.partition("CapPrm:")[2].split()[0], 16)
    _call(call, struct.pack("Ii", 0x20080522, 0), struct.pack("6I", kept, kept, 0, 0, 0, 0))


def _refuse_calls() -> None:
    """Refuse system calls by a filter, which also ends a process that calls as another processor does."""
    processor = _PROCESSORS[platform.machine()]
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, processor.number), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _DENY)]  # calls of the x32 form of x86-64
    for number in processor.refused:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    code += _allow_only(processor.socket, {16: _UNIX})  # its first argument
    code += _allow_only(processor.send_to, {48: 0, 52: 0})  # both halves of its fifth: to no address
    code.append((_RETURN, 0, 0, _ALLOW))
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(instructions))
    _prctl(_SET_SECCOMP, _FILTER, program)


def _allow_only(call: int, arguments: dict[int, int]) -> list[tuple[int, int, int, int]]:
    """Return instructions that allow a call with these values at these places alone."""
    code = [(_EQUAL, 0, 2 * len(arguments) + 2, call)]
    for index, (place, value) in enumerate(arguments.items()):
        code += [(_LOAD, 0, 0, place), (_EQUAL, 0, 2 * (len(arguments) - index) - 1, value)]
    return [*code, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]


def _prctl(option: int, *arguments: object) -> None:
    if _libc().prctl(option, *arguments, *[0] * (4 - len(arguments))):
        _raise()


def _call(number: int, *arguments: object) -> int:
    result: int = _libc().syscall(number, *arguments)
    if result < 0:
        _raise()
    return result


def _raise() -> None:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main(sys.argv[1:])
