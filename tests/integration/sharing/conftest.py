"""The finished run of the unit tests."""

from tests.unit.sharing.conftest import run

__all__ = ["run"]
