"""Adapter files of any program: read, write, convert, merge, and check which programs load them."""
