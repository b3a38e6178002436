"""What is locked is what pyproject.toml allows and the tests ran with, and the bill of materials is whole."""

import re
import tomllib
from importlib.metadata import version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import supply_chain
from tests.conftest import CHECKOUT


def locked() -> dict[str, str]:
    """Versions of the lock file by name, of those for this system."""
    pins = {}
    for line in supply_chain.LOCK.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w.-]+==[^\s;]+)( ;[^\\]*)?", line):
            requirement = Requirement(match[0].strip())
            if requirement.marker is None or requirement.marker.evaluate():
                pins[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return pins


def test_the_lock_file_is_admitted_by_the_ranges() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = locked()
    assert len(pins) > 50
    for text in project["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_each_locked_version_has_a_hash() -> None:
    blocks = re.split(r"\n(?=\S)", supply_chain.LOCK.read_text(encoding="utf-8"))
    pinned = [block for block in blocks if not block.startswith("#")]
    assert pinned
    assert all("--hash=sha256:" in block and "==" in block.partition("\n")[0] for block in pinned)


def test_the_bill_of_materials_names_all_that_is_installed() -> None:
    bill = supply_chain.sbom()
    versions = {component["name"]: component["version"] for component in bill["components"]}
    for name in ("torch", "gradio", "pillow", "safetensors", "pydantic-core", "tokenizers"):
        assert versions[name] == version(name)
    assert not versions.keys() & {"limner", "pytest", "ruff"}
    references = {component["bom-ref"] for component in bill["components"]}
    assert {row["ref"] for row in bill["dependencies"]} == references | {bill["metadata"]["component"]["bom-ref"]}
    assert all(need in references for row in bill["dependencies"] for need in row["dependsOn"])
    assert supply_chain.sbom() == bill
