"""Make this Python process behave as on Windows, if LIMNER_WINDOWS names the folder that stands for its disk."""

import os
from pathlib import Path

import emulated_disk
import emulated_modules
import emulated_text

if disk := os.environ.get("LIMNER_WINDOWS"):
    emulated_text.install()
    emulated_disk.install(Path(disk))
    emulated_modules.install(Path(__file__).resolve().parents[2])
