"""The `limner` command line: all that the page does, on the same folders.

What a command needs in its environment is set here, before other modules read it.
"""

import os
import sys
from collections import ChainMap

from trainer import extension

UNATTENDED = {"page", "work", "sampler"}.union(*(added.unattended for added in extension.installed()))
ONLINE = ChainMap({"download": ""}, *(dict(added.online) for added in extension.installed()))
COMMAND = next(iter(sys.argv[1:]), "")
# The help is English, so all that a command prints is. What the page starts speaks the language of the page.
if COMMAND not in UNATTENDED:
    os.environ["LANGUAGE"] = "en"
# A command must not look anything up on a network without being asked to.
if COMMAND in ONLINE and any(argument.startswith(ONLINE[COMMAND]) for argument in sys.argv):
    os.environ["HF_HUB_OFFLINE"] = "0"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
