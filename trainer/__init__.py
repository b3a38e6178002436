"""Limner's trainer: everything but the page."""

__version__ = "0.1.0"
