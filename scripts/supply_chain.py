"""What Limner depends on: `python -m scripts.supply_chain lock|sbom|lowest|audit`.

lock     write requirements.lock: the versions of this environment with hashes, for Linux, macOS and Windows
sbom     print a CycloneDX bill of materials of what is installed for Limner here
lowest   install the lowest versions that pyproject.toml allows into a fresh environment, and run the tests there
audit    look up known vulnerabilities of the versions in requirements.lock

`lock`, `lowest` and `audit` need uv (https://docs.astral.sh/uv/) and a network.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trainer import __version__

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PYTHON = "3.11"  # the lowest that is supported
CPU = "https://download.pytorch.org/whl/cpu"


def installed(name: str = "limner") -> dict[str, Distribution]:
    """Return what is installed for a package: it and all that it needs, by canonical name."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        key = canonicalize_name(waiting.pop())
        if key in found:
            continue
        try:
            found[key] = distribution(key)
        except PackageNotFoundError:  # for another system
            continue
        waiting += _needs(found[key])
    return dict(sorted(found.items()))


def _needs(package: Distribution) -> Iterator[str]:
    """Yield the names of what a package needs here, without its extras."""
    for text in package.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def sbom() -> dict[str, Any]:
    """Return the bill of materials in the form of CycloneDX 1.6; the same environment gives the same one."""
    packages = installed()
    packages.pop("limner", None)
    purls = {name: f"pkg:pypi/{name}@{package.version}" for name, package in packages.items()}
    components = []
    for name, package in packages.items():
        component = {"type": "library", "bom-ref": purls[name], "name": name, "version": package.version}
        component["purl"] = purls[name]
        fields = package.metadata
        if license_name := fields.get("License-Expression"):
            components.append(component | {"licenses": [{"expression": license_name}]})
        elif license_name := (fields.get("License") or "").strip().partition("\n")[0][:80]:
            components.append(component | {"licenses": [{"license": {"name": license_name}}]})
        else:
            components.append(component)
    root = f"pkg:pypi/limner@{__version__}"
    direct = {canonicalize_name(name) for name in _needs(distribution("limner"))}
    graph = [{"ref": root, "dependsOn": sorted(purls[name] for name in direct & purls.keys())}]
    for name, package in packages.items():
        needs = {canonicalize_name(need) for need in _needs(package)} & purls.keys()
        graph.append({"ref": purls[name], "dependsOn": sorted(purls[need] for need in needs)})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components))}",
        "version": 1,
        "metadata": {"component": {"type": "application", "bom-ref": root, "name": "limner", "version": __version__}},
        "components": components,
        "dependencies": graph,
    }


def lock() -> None:
    """Write the lock file with the versions of this environment, which the tests ran with."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        pins = [f"{name}=={package.version.partition('+')[0]}" for name, package in installed().items()]
        constraints.write_text("\n".join(pin for pin in pins if not pin.startswith("limner=")), encoding="utf-8")
        options = ["--universal", "--generate-hashes", "--no-sources", "--python-version", PYTHON, "--quiet"]
        options += ["--custom-compile-command", "python -m scripts.supply_chain lock", "--no-annotate"]
        _run("uv", "pip", "compile", "pyproject.toml", *options, "-c", str(constraints), "-o", str(LOCK))


def lowest() -> None:
    """Run the tests with the lowest versions that pyproject.toml allows."""
    with tempfile.TemporaryDirectory() as folder:
        python = str(Path(folder) / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))
        _run("uv", "venv", "--quiet", "--python", PYTHON, folder)
        options = [
            "--resolution",
            "lowest-direct",
            "--prerelease",
            "disallow",
            "--no-sources",
            "--extra-index-url",
            CPU,
        ]
        _run("uv", "pip", "install", "--python", python, *options, "-e", f"{ROOT}[test]")
        _run(python, "-m", "pytest")


def audit() -> None:
    """Look up known vulnerabilities of the locked versions."""
    _run("uvx", "pip-audit", "--require-hashes", "--disable-pip", "--requirement", str(LOCK))


def _run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="scripts.supply_chain", description="Lock, list and check dependencies.")
    parser.add_argument("command", choices=["lock", "sbom", "lowest", "audit"])
    command = parser.parse_args().command
    if command == "sbom":
        print(json.dumps(sbom(), indent=1))
    else:
        {"lock": lock, "lowest": lowest, "audit": audit}[command]()


if __name__ == "__main__":
    main()
