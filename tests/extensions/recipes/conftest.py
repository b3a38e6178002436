"""Fixtures of the page's tests."""

from tests.unit.conftest import no_gauge

__all__ = ["no_gauge"]
