"""Windows' registry, as far as Limner reads it: the names of the graphics cards, which a variable of the test holds."""

import os
from types import ModuleType

CARDS = "LIMNER_EMULATED_CARDS"  # names, separated by semicolons


class Key:
    """An open key: the one of all cards, or that of a card."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __enter__(self) -> "Key":
        return self

    def __exit__(self, *_: object) -> None: ...


def open_key(key: Key | int, name: str) -> Key:
    if isinstance(key, int):
        if not os.environ.get(CARDS):
            raise FileNotFoundError(2, "The system cannot find the file specified")
        return Key(os.environ[CARDS].split(";"))
    if name == "Properties":
        raise PermissionError(13, "Access is denied")
    return Key([key.names[int(name)]])


def query_info_key(key: Key) -> tuple[int, int, int]:
    return len(key.names) + 1, 0, 0


def enum_key(key: Key, number: int) -> str:
    return f"{number:04}" if number < len(key.names) else "Properties"


def query_value_ex(key: Key, name: str) -> tuple[str, int]:
    assert name == "DriverDesc"
    return key.names[0], 1


module = ModuleType("winreg")
module.__dict__.update(
    HKEY_LOCAL_MACHINE=2,
    OpenKey=open_key,
    QueryInfoKey=query_info_key,
    EnumKey=enum_key,
    QueryValueEx=query_value_ex,
)
