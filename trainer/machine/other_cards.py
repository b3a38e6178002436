"""Graphics cards of AMD and Intel: a sentence about the torch that computes on them, which the start scripts leave out.

Torch-free. Graphics that share main memory with the processor are left out: they would not be faster.
"""

import re
import sys
from contextlib import suppress
from pathlib import Path

from trainer.i18n import _

DEVICES = Path("/sys/class/drm")
BUILDS = {"AMD": "ROCm", "Intel": "XPU"}  # of torch
_MAKERS = {"0x1002": "AMD", "0x8086": "Intel"}  # PCI vendors
_SHARED = 3 * 2**30  # bytes; graphics of AMD's processors have less of their own
_INTEGRATED = re.compile(r"0000:00:02\.\d")  # where Intel's processors have theirs on the PCI bus
_DISPLAYS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"  # in Windows' registry
_NAMES = {"AMD": re.compile(r"Radeon (RX|Pro|AI)", re.IGNORECASE), "Intel": re.compile(r"\bArc\b.* [AB]\d{3}")}


def advice() -> str:
    """Return a sentence about the first such card of this machine; "" if there is none."""
    makers = _on_windows() if sys.platform == "win32" else _on_linux(DEVICES)
    if not makers:
        return ""
    return _(
        "There is a graphics card of {maker}, which is not used: Limner is untested on it. To try it, set "
        "LIMNER_TORCH_INDEX to the package index for {build} that pytorch.org/get-started names, and run the start "
        "script.",
        maker=makers[0],
        build=BUILDS[makers[0]],
    )


def _on_linux(devices: Path) -> list[str]:
    makers = []
    for file in sorted(devices.glob("card*/device/vendor")):
        maker = _MAKERS.get(_line(file), "")
        memory = _line(file.with_name("mem_info_vram_total"))
        if maker == "AMD" and memory.isdigit() and int(memory) > _SHARED:
            makers.append(maker)
        if maker == "Intel" and not _INTEGRATED.fullmatch(file.parent.resolve().name):
            makers.append(maker)
    return makers


def _line(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _on_windows() -> list[str]:
    names: list[str] = []
    if sys.platform == "win32":
        import winreg  # noqa: PLC0415 - there on Windows only

        with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _DISPLAYS) as displays:
            for number in range(winreg.QueryInfoKey(displays)[0]):
                # One of the keys is for administrators alone.
                with suppress(OSError), winreg.OpenKey(displays, winreg.EnumKey(displays, number)) as display:
                    names.append(str(winreg.QueryValueEx(display, "DriverDesc")[0]))
    return [maker for name in names for maker, pattern in _NAMES.items() if pattern.search(name)]
