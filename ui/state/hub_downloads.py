"""Downloads of base models from the Hugging Face Hub, each in a process of its own, as the page itself stays offline.

A download that is canceled, or whose process dies, continues where it ended when it is started again.
"""

import subprocess
import sys
import threading
from dataclasses import dataclass

from trainer import foreign_text, processes
from trainer.base_models import hub
from trainer.captioning import kinds
from trainer.errors import UserError
from trainer.i18n import _

COMMAND = (sys.executable, "-m", "trainer", "download")


@dataclass
class Download:
    """A download: bytes that are here and in all (0 = not known yet), and the sentence of what went wrong."""

    process: subprocess.Popen[str]
    done: int = 0
    total: int = 0
    error: str = ""

    @property
    def running(self) -> bool:
        """Return True if bytes still arrive."""
        return self.process.poll() is None and not self.error


_DOWNLOADS: dict[str, Download] = {}
_LOCK = threading.Lock()


def offer(name: str, known: hub.WellKnown | kinds.WellKnown | None) -> str:
    """Describe a model that can be downloaded, as far as it is known."""
    if known:
        return _(
            "{model} is not on this machine yet: {size:.1f} GB from the Hugging Face Hub, license {license}.",
            model=known.title,
            size=known.size,
            license=known.license,
        )
    return _("{base} is not on this machine. If it is a name on the Hugging Face Hub, download it.", base=name)


def start(base: str) -> None:
    """Start to download a base model, unless it is being downloaded."""
    with _LOCK:
        current = _DOWNLOADS.get(base)
        if current and current.running:
            return
        command = [*COMMAND, "--json", "--", base]
        _DOWNLOADS[base] = Download(processes.start(command, stdout=processes.PIPE, stderr=processes.NOWHERE))
    threading.Thread(target=_follow, args=[_DOWNLOADS[base]], daemon=True).start()


def find(base: str) -> Download | None:
    """Return the latest download of a base model since the page was started; None if there was none."""
    return _DOWNLOADS.get(base)


def cancel(base: str) -> None:
    """End the download of a base model; what is here of it is kept."""
    with _LOCK:
        download = _DOWNLOADS.pop(base, None)
    if download:
        download.process.terminate()


def end() -> None:
    """End all downloads: the page ends."""
    for base in list(_DOWNLOADS):
        cancel(base)


def _follow(download: Download) -> None:
    with download.process as process:
        for line in process.stdout or ():
            values = foreign_text.parse_json(line)
            if "error" in values:
                download.error = f"{values['error']} {values['remedy']}"
            else:
                download.done, download.total = values["done"], values["total"]
    if process.returncode and not download.error:
        error = UserError("The download was interrupted.", "Start it again; it continues where it ended.")
        download.error = f"{error.message} {error.remedy}"
