"""Facts about base models: how to recognize one, its layers and their shapes, its files for offline use. Torch-free."""

from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"  # by family: what a base model in a single file leaves out
MICRO = "micro"  # the name of the built-in base model
MICRO_FOLDER = Path(__file__).parent / MICRO
