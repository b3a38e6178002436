"""Windows' registry, as far as Limner reads it: the names of the graphics cards, which a variable of the test holds."""

import os
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType, SimpleNamespace

CARDS = "LIMNER_EMULATED_CARDS"  # names, separated by semicolons


def open_key(key: object, name: str) -> AbstractContextManager[object]:
    """Open the key of all cards, or that of a card by its number."""
    if isinstance(key, int):
        if not os.environ.get(CARDS):
            raise FileNotFoundError(2, "The system cannot find the file specified")
        return nullcontext(os.environ[CARDS].split(";"))
    if name == "Properties":
        raise PermissionError(13, "Access is denied")
    return nullcontext(SimpleNamespace(DriverDesc=key[int(name)]))  # type: ignore[index]


module = ModuleType("winreg")
module.__dict__.update(
    HKEY_LOCAL_MACHINE=2,
    OpenKey=open_key,
    QueryInfoKey=lambda key: (len(key) + 1, 0, 0),
    EnumKey=lambda key, number: f"{number:04}" if number < len(key) else "Properties",
    QueryValueEx=lambda key, name: (getattr(key, name), 1),
)
