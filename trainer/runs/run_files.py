"""Files that a run may contain, and what each of them has to be. Nodes of a cluster bring such files.

Everything else in a run folder belongs to this machine: the lock, the requests, the address of a cluster.
"""

import re
from pathlib import Path, PurePosixPath

from trainer import config, paths
from trainer.adapter_files import safetensors_reader
from trainer.data import images
from trainer.errors import UserError
from trainer.runs import checkpoints, events
from trainer.runs.run import LOG, SETTINGS

MAX_PREVIEW = 64 * 2**20  # bytes
# Besides settings and log, by the path in the run folder.
_FILES = re.compile(
    r"[\w-]{1,64}\.safetensors|(peft/pytorch_lora_weights|adapters/\d{1,9})\.safetensors"
    r"|previews/\d{1,9}_\d{1,3}\.png|checkpoints/\d{1,9}/(adapter\.safetensors|optimizer\.safetensors|manifest\.json)"
)


def is_file(path: str) -> bool:
    """Return True for the path of a file, other than settings and log, that a run may contain."""
    return bool(_FILES.fullmatch(path)) and not any(paths.is_device(part) for part in PurePosixPath(path).parts)


def is_any(path: str) -> bool:
    """Return True for the path of any file that a run may contain, settings and log included."""
    return path in (SETTINGS, LOG) or is_file(path)


def named_by(event: events.Event) -> list[str]:
    """List the paths of files that an event names. They come from whoever wrote the log, so check them."""
    match event:
        case events.Preview() | events.Verified():
            return [event.file]
        case events.Checkpoint():
            return [f"{event.folder}/{checkpoints.MANIFEST}"]
        case events.Finished():
            return [event.export, *event.sha256]
        case _:
            return []


def check(path: Path, name: str) -> None:
    """Check that a file is what its name in the run says, whatever it is called now.

    The optimizer's state is not read: it is as large as everything else together, and its checkpoint has a checksum.

    Raises:
        UserError: it is something else, damaged, or too large.
    """
    pure = PurePosixPath(name)
    if pure.suffix == ".png":
        if path.stat().st_size > MAX_PREVIEW:
            raise UserError("{name} is too large.", "A preview has at most 64 MB.", name=pure.name)
        images.upright(path.read_bytes(), formats=("PNG",))
    elif pure.suffix == ".safetensors" and pure.name != checkpoints.OPTIMIZER:
        safetensors_reader.read(path)
    elif name == SETTINGS:
        config.load(path)
