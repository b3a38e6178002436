"""Limner's trainer: everything but the page."""

import logging

__version__ = "0.2.0.dev1"

# Where it is installed, it misses what nobody here needs. Each process imports this first, however it was begun.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
