"""Fixtures of the page's tests, and of those that train."""

from tests.integration.conftest import _fresh_accelerate, _frozen
from tests.unit.conftest import finished

__all__ = ["_fresh_accelerate", "_frozen", "finished"]
