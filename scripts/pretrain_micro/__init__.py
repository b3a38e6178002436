"""How the built-in base model "micro" was made, from nothing to weights; README.md has the commands.

Not part of the product: nothing in `trainer` or `ui` imports this.
"""
