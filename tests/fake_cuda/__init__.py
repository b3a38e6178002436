"""A CUDA card without one: the memory that real code would take on it, for models of real size, in seconds.

`guard.cpp` lets torch compute with tensors that have no values on "cuda:0", `card` counts what is alive there,
`program` trains, generates and encodes on it, and `steps` finds where training waits for it. The rest of a process
could not be trusted after that, so that it is one of its own. What a real card takes beside (CUDA's own context,
workspaces of its libraries, fragments) is not counted.
"""

import hashlib
import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import python, unmeasured

GUARD = Path(__file__).with_name("guard.cpp")


def measure(cache: Path, *arguments: str, card: float = 80) -> dict[str, float]:
    """Run `program` with arguments; return the GiB that each of its parts takes.

    Args:
        cache: folder in which the compiled guard is kept.
        arguments: base model, and the parts.
        card: GiB that it has; beyond them nothing fails.
    """
    return {name: size / 2**30 for name, size in _run(cache, "program", str(card), *arguments).items()}


def waits(cache: Path, *arguments: str) -> list[str]:
    """Return the places at which a step waits for the card; the arguments are those of `steps`."""
    places: list[str] = _run(cache, "steps", *arguments)
    return places


def _run(cache: Path, program: str, *arguments: str) -> Any:  # noqa: ANN401 - what it prints
    environment = {**unmeasured(), "LIMNER_FAKE_CUDA_GUARD": str(compiled(cache))}
    done = python("-m", f"tests.fake_cuda.{program}", *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def compiled(cache: Path) -> Path:
    """Compile the guard for the torch that is installed, unless that was done already; a second of CPU time."""
    compiler = shutil.which("g++")
    if compiler is None and "CI" not in os.environ:
        pytest.skip("there is no C++ compiler (g++)")
    torch = Path(str(find_spec("torch").origin)).parent  # type: ignore[union-attr]
    key = hashlib.sha256(GUARD.read_bytes() + (torch / "version.py").read_bytes()).hexdigest()
    library = cache / f"guard-{key[:16]}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        command = [str(compiler), "-std=c++20", "-shared", "-fPIC", str(GUARD), f"-I{torch / 'include'}"]
        subprocess.run([*command, f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(part)], check=True)
        part.replace(library)
    return library
