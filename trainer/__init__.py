"""Limner's trainer: everything but the page."""

import logging

__version__ = "0.2.0.dev1"

# Where it is installed, it misses what nobody here needs. Each process imports this first, however it was begun.
for library in ("bitsandbytes", "kernels"):  # the first asks the second for faster code, which is not there offline
    logging.getLogger(library).setLevel(logging.ERROR)
