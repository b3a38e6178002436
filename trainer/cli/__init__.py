"""The `limner` command line: all that the page does, on the same folders."""
