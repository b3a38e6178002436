"""Train the built-in base model "micro" from scratch; README.md has the commands.

Not part of the product: nothing in `trainer` or `ui` imports this.
"""
