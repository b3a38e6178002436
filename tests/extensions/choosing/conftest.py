"""Fixtures of the page's tests."""

from tests.unit.conftest import finished

__all__ = ["finished"]
