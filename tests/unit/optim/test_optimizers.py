"""Optimizers: the table and its traces, the steps that each takes, and classes by their dotted name."""

import json
import re
import struct
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import CHECKOUT
from trainer import config
from trainer.errors import UserError
from trainer.optim import custom
from trainer.optim.optimizers import ROWS, OptimizerConfig
from trainer.training import optimizer_step
from trainer.training.checkpoint import TrainState

FILE = Path(__file__).with_name("weights.json")
RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


def settings(kind: str, **options: Any) -> OptimizerConfig:  # noqa: ANN401 - any settings
    changes = {"schedule": {"kind": "constant"}, "optimizer": {"kind": kind, **options}}
    return config.build({"name": "x", "dataset": "x"} | changes).optimizer


def trained(chosen: OptimizerConfig) -> list[float]:
    """Return the weights of an adapter of a linear layer after five steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        down, up = nn.Parameter(torch.randn(4, 6) / 2), nn.Parameter(torch.randn(5, 4) / 2)
        inputs, targets = torch.randn(5, 3, 6), torch.randn(5, 3, 5)
        share = 1.0 if chosen.row.finds_rate else 0.5
        optimizer: Any = chosen.build([{"params": [down], "factor": 1.0}, {"params": [up], "factor": share}])
        for batch, target in zip(inputs, targets, strict=True):
            loss = nn.functional.mse_loss(batch @ down.T @ up.T, target)
            loss.backward()
            optimizer_step.advance(TrainState(optimizer), chosen.learning_rate, None)
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return [float(value) for weight in (down, up) for value in weight.detach().flatten()]


@pytest.mark.parametrize("kind", ROWS)
def test_five_steps_give_the_recorded_weights(kind: str) -> None:
    """To within rounding, as the last bits depend on the CPU; run this module as a program to record a new kind."""
    assert kind in RECORDED, "run this module as a program"
    expected = [number for (number,) in struct.iter_unpack("<f", bytes.fromhex(RECORDED[kind]))]
    assert trained(settings(kind)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_no_place_is_forgotten() -> None:
    """A new optimizer is a row; what follows from it elsewhere, and its package, must be there too."""
    kinds = re.compile("|".join(f'"{kind}"' for kind in ROWS))
    program = [*(CHECKOUT / "trainer").rglob("*.py"), *(CHECKOUT / "ui").rglob("*.py")]
    naming = {path for path in program if kinds.search(path.read_text(encoding="utf-8"))}
    own = {"trainer/optim/optimizers.py", "trainer/config/loading.py", "trainer/config/run_config.py"}  # the default
    others = {name for path in naming if "recipes" not in (name := path.relative_to(CHECKOUT).as_posix())}
    assert others <= own, "ask the row instead; only recipes have the names of other programs"
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, reference = project["optional-dependencies"], (CHECKOUT / "docs/reference.md").read_text(encoding="utf-8")
    for row in ROWS.values():
        assert row.extra in ("", *extras), "its extra is in pyproject.toml"
        assert not row.extra or set(extras[row.extra]) <= set(extras["test"]), "tests run with its package"
        assert f"\n| `{row.kind}` | " in reference


@pytest.mark.parametrize("kind", [row.kind for row in ROWS.values() if row.extra])
def test_an_optimizer_whose_package_is_absent(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ROWS[kind].path.partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # how Python itself says that there is no such module
    with pytest.raises(UserError, match="not installed") as caught:
        settings(kind).build([])
    assert "pip install" in caught.value.remedy


def test_any_installed_optimizer_by_its_class() -> None:
    """With the arguments of AdamW it takes the steps of AdamW; others are those of their class."""
    usual, lines = settings("adamw"), ["betas = [0.9, 0.99]", "weight_decay = 0.0", "fused=true"]
    named = settings("custom", class_name="torch.optim.AdamW", arguments=lines, learning_rate=usual.learning_rate)
    assert trained(named) == trained(usual)
    assert named.class_path == "torch.optim.AdamW"
    for name in ("torch.optim.RAdam", "pytorch_optimizer.StableAdamW", "schedulefree.SGDScheduleFree"):
        assert trained(settings("custom", class_name=name)) != trained(usual), name


REFUSED: dict[str, tuple[str, list[str], str]] = {
    "no package": ("nothing_such.Optimizer", [], "No installed package has the module nothing_such"),
    "of Python": ("antigravity.Optimizer", [], "No installed package"),
    "no module": ("torch.nothing.Adam", [], r"cannot be imported \([^/]*\)\."),
    "a state": ("pytorch_optimizer.SOAP", [], r"SOAP \(GG\) keeps a state that a checkpoint cannot hold"),
    "another class": ("torch.nn.Linear", [], "is not a subclass of torch.optim.Optimizer"),
    "an argument": ("torch.optim.SGD", ["momentum = 0.9", "beta = 1"], "does not take the argument beta"),
    "a value": ("torch.optim.SGD", ["momentum = -2.0"], "refuses its arguments .*momentum"),
    "a closure": ("torch.optim.LBFGS", [], r"cannot take a step \(TypeError.*closure"),
}


@pytest.mark.parametrize(("name", "lines", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_optimizer_is_refused(name: str, lines: list[str], reason: str) -> None:
    chosen = settings("custom", class_name=name, arguments=lines)
    with pytest.raises(UserError, match=reason):
        chosen.build([{"params": [nn.Parameter(torch.zeros(2, 2))], "factor": 1.0}])


NAMES = ["", "Adam", "pip.__main__.Main", "a b.C", "torch..C", "torch.optim._functional.C"]
LINES = ["momentum", "lr = 1", "params = []", "x = [", "x = {}", "1 = 2"]


@pytest.mark.parametrize(("name", "line"), list(zip(NAMES, LINES, strict=True)))
def test_settings_of_a_class_are_checked(name: str, line: str) -> None:
    data = {"name": "x", "dataset": "x", "optimizer": {"kind": "custom", "class_name": name, "arguments": [line]}}
    assert config.find_errors(data).keys() == {"optimizer.class_name", "optimizer.arguments"}


@pytest.mark.parametrize("name", ["foreign_optimizer", "schedulefree"])
def test_files_beside_a_config_are_never_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a module in the working directory, nor one there that takes the place of an installed package."""
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    marker = tmp_path / "ran"
    (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\nfrom torch.optim import SGD\n", encoding="utf-8")
    claimed = tmp_path / f"{name}-9.dist-info"  # what says that it is installed
    claimed.mkdir()
    (claimed / "METADATA").write_text(f"Name: {name}\nVersion: 9\n", encoding="utf-8")
    (claimed / "top_level.txt").write_text(name, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with pytest.raises(UserError, match="No installed package"):
        custom.construct(f"{name}.SGD", [{"params": [nn.Parameter(torch.zeros(2))]}], {})
    assert not marker.exists()


if __name__ == "__main__":
    values = {kind: trained(settings(kind)) for kind in ROWS}
    weights = {kind: struct.pack(f"<{len(numbers)}f", *numbers).hex() for kind, numbers in values.items()}
    FILE.write_text(json.dumps(weights, indent=1) + "\n", encoding="utf-8")
