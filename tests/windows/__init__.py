"""An emulation of Windows for the programs that a test starts: `sitecustomize.py`, loaded by each of their processes.

It shows what Limner itself does wrong there: uses what Windows' Python lacks, replaces files that are open, relies on
UTF-8. It knows nothing of drivers, of Windows' builds of torch and of what libraries do differently there.
"""

import os
from pathlib import Path

from tests.conftest import CHECKOUT

KIT = Path(__file__).parent


def environment(disk: Path, home: Path | None = None) -> dict[str, str]:
    """Return the environment of a program on an emulated Windows; its files are protected on this disk alone."""
    (disk / ".emulation").mkdir(exist_ok=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHONUTF8"))}
    # In the C locale Python would take UTF-8 by itself.
    variables |= {
        "LANG": "C.UTF-8",
        "LIMNER_WINDOWS": str(disk),
        "PYTHONPATH": os.pathsep.join([str(KIT), str(CHECKOUT)]),
    }
    return variables | ({"LIMNER_HOME": str(home)} if home else {})


def violations(disk: Path) -> list[str]:
    """Return what was refused on a disk because a file was open: a line for each."""
    log = disk / ".emulation" / "violations"
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def hold(disk: Path, pid: int) -> None:
    """Let the files that a process of the test has open be protected too."""
    (disk / ".emulation" / str(pid)).touch()
