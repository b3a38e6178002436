"""The versions of the files of a base model, which may be replaced under the same names."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer.base_models import detect
from trainer.errors import UserError

Version = tuple[str, int, int]  # path, size in bytes and time in nanoseconds of a file


def versions(base: str, revision: str = "", vae: str = "") -> list[Version]:
    """Return the version of each file that a part of a base model may come from; equal as long as none has changed.

    Beside a single file these are all other models, as its text encoders and its VAE may be among them. A base that is
    not on this machine has none.
    """
    paths = [Path(vae).expanduser()] if vae else []
    with suppress(UserError):
        paths.append(detect.locate(base, revision)[0])
    return sorted(_versions(*paths))


def _versions(*paths: Path) -> Iterator[Version]:
    for path in paths:
        beside = [file for folder in detect.folders_beside(path) for file in folder.glob("*.safetensors")]
        for file in [*path.rglob("*.safetensors"), *path.rglob("*.json")] if path.is_dir() else beside:
            with suppress(OSError):  # it is being replaced, or a link leads nowhere
                stat = file.stat()
                yield str(file.resolve()), stat.st_size, stat.st_mtime_ns
