"""Rules about the tree itself: what lies where, how large it may be, and what may stand in it nowhere."""

import ast
import re

import pytest

from tests.conftest import CHECKOUT
from trainer.adapter_files.family_rules import METADATA, SUPPORT
from trainer.base_models import registry

PROGRAM = [CHECKOUT / "app.py"]
PROGRAM += sorted(path for name in ("trainer", "ui", "limner_extensions") for path in (CHECKOUT / name).rglob("*.py"))


FORBIDDEN = {
    r"import pickle|\bpickle\.|torch\.load\(|torch\.save\(|joblib|marshal": "pickle",
    r"extractall|extract\(": "a zip unpacked by names of its own",
    r"trust_remote_code(?!=False)|allow_pickle": "foreign code",
    r"\.seek\(\d+\)|n_frames|LOAD_TRUNCATED_IMAGES|MAX_IMAGE_PIXELS": "frames or limits of pictures",
    r"gr\.load|FileExplorer|set_static_paths|share\s*=\s*True": "a part of gradio that opens the machine",
    r"write_text\(|write_bytes\(|open\([^)]*[\"'][wx]b?\+?[\"']|save_file\(": "writing past storage.write",
    r"read_text\(\)|\.open\(\)": "text in the encoding of the system",
}


@pytest.mark.parametrize(("pattern", "what"), FORBIDDEN.items(), ids=FORBIDDEN.values())
def test_what_may_stand_nowhere(pattern: str, what: str) -> None:
    for path in {*PROGRAM} - {CHECKOUT / "trainer" / "storage.py"}:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if ".log" not in line and "log.seek(0)" not in line:  # logs are appended to, not replaced
                code = line.partition("#")[0]
                assert not re.search(pattern, code), f"{path.relative_to(CHECKOUT)}:{number} has {what}: {line.strip()}"


def test_a_family_is_named_in_its_files_and_the_registry() -> None:
    names = re.compile(rf"(?<![a-z])({'|'.join(registry.FAMILIES)})(?![a-z])")  # not as a part of another word
    own = {
        CHECKOUT / f"trainer/{package}/{name}.py"
        for package in ("base_models/specs", "families")
        for name in registry.FAMILIES
    }
    own |= {CHECKOUT / "trainer/adapter_files/family_rules.py", CHECKOUT / "limner_extensions/recipes/families.py"}
    naming = {path for path in PROGRAM if names.search(path.read_text(encoding="utf-8"))}
    assert naming - own == {CHECKOUT / "trainer" / "base_models" / "registry.py"}
    for name, spec in registry.FAMILIES.items():
        assert METADATA[name].names.keys() == spec.variants.keys()
        assert METADATA[name].sizes.keys() == {size.configs for size in spec.sizes}
    assert SUPPORT.keys() == registry.TRANSFORMERS.keys()


def test_one_module_asks_about_hardware() -> None:
    hardware = re.compile(r"""["']cuda|torch\.(cuda|xpu|mps|accelerator|backends)\b""")
    asking = {path for path in PROGRAM if hardware.search(path.read_text(encoding="utf-8"))}
    assert asking == {CHECKOUT / "trainer" / "devices.py"}


STARTING = re.compile(r"subprocess\.(Popen|run|call|check_output)|os\.execv|asyncio\.create_subprocess_(exec|shell)")


def test_programs_are_started_by_lists_of_arguments() -> None:
    starting = [path for path in PROGRAM if re.search(r"subprocess|execv", path.read_text(encoding="utf-8"))]
    assert CHECKOUT / "trainer" / "processes.py" in starting
    for path in starting:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and STARTING.fullmatch(ast.unparse(node.func)):
                assert path == CHECKOUT / "trainer" / "processes.py"
                assert isinstance(node.args[0], ast.List | ast.Attribute | ast.Name | ast.Starred), path
                assert not ast.unparse(node.func).endswith("_shell"), path
                assert not [keyword for keyword in node.keywords if keyword.arg == "shell"]
