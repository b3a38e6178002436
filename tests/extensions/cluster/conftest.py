"""Fixtures of the tests that train."""

from tests.integration.conftest import _fresh_accelerate, _frozen, workers

__all__ = ["_fresh_accelerate", "_frozen", "workers"]
