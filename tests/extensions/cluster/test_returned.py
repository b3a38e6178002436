"""Adapters that a node returns: nine that the run would not have written, as its result and as a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from limner_extensions.cluster import relay
from limner_extensions.cluster.node import News, Node
from tests.extensions.cluster import returns
from tests.unit.adapter_files.test_compatibility import good
from trainer import config, runs, storage
from trainer.runs import Run, checkpoints, events

STEPS = 9
UP = "lora_up.weight"


@dataclass
class Returning(Node):
    """A node whose worker is done at once, with a bad adapter as its result or as a checkpoint, or with a good one."""

    root: Path
    bad: Callable[[Run], tuple[bytes, str]] | None = None
    as_checkpoint: bool = False
    sent: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        super().__init__(self.root)

    def begin(self) -> None:
        run = Run(self._run.folder)
        (run.folder / "ask").mkdir(exist_ok=True)
        run.report(events.Started(step=0, steps=STEPS, pid=1, device="CPU"))
        data, total = self.bad(run) if self.bad else (returns.adapter(run), "")
        if self.as_checkpoint:
            returns.checkpoint(run, 3, data, {checkpoints.ADAPTER: total} if total else None)
            return
        returns.checkpoint(run, 3)
        own = storage.write(run.export, data)
        sums = {run.export.name: total or own, run.config_file.name: "of the node"}
        run.report(events.Finished(step=STEPS, export=run.export.name, sha256=sums))
        self.sent = data

    def news(self, *values: Any) -> News:  # noqa: ANN401 - as of a node
        return replace(super().news(*values), code=0 if self.sent or self.as_checkpoint else None)


def changed(change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Callable[[Run], tuple[bytes, str]]:
    def make(run: Run) -> tuple[bytes, str]:
        tensors, metadata = returns.tensors_of(run), returns.metadata_of(run)
        change(tensors, metadata)
        return safetensors.torch.save(tensors, metadata), ""

    return make


def first(tensors: dict[str, torch.Tensor], ending: str) -> str:
    return min(key for key in tensors if key.endswith(ending))


def fill(value: float) -> Callable[[Run], tuple[bytes, str]]:
    def put(tensors: dict[str, torch.Tensor], _metadata: dict[str, str]) -> None:
        tensors[first(tensors, UP)][0] = value

    return changed(put)


def widen(tensors: dict[str, torch.Tensor], _metadata: dict[str, str]) -> None:
    name = first(tensors, UP).removesuffix(UP)
    for ending, side in ((UP, 1), ("lora_down.weight", 0)):
        tensors[name + ending] = torch.cat([tensors[name + ending]] * 2, side)


def drop(tensors: dict[str, torch.Tensor], _metadata: dict[str, str]) -> None:
    name = first(tensors, UP).removesuffix(UP)
    for key in [key for key in tensors if key.startswith(name)]:
        del tensors[key]


def add(tensors: dict[str, torch.Tensor], _metadata: dict[str, str]) -> None:
    name = "lora_unet_down_blocks_0_resnets_0_conv1."
    tensors[f"{name}{UP}"] = torch.ones(32, 4, 1, 1)
    tensors[f"{name}lora_down.weight"] = torch.ones(4, 32, 3, 3)
    tensors[f"{name}alpha"] = torch.tensor(4.0)


def still(tensors: dict[str, torch.Tensor], _metadata: dict[str, str]) -> None:
    for key in tensors:
        if key.endswith(UP):
            tensors[key].zero_()


def other_family(_run: Run) -> tuple[bytes, str]:
    tensors = {key: torch.ones(tuple(tensor.shape)) for key, tensor in good("sdxl").items()}
    return safetensors.torch.save(tensors), ""


def reseed(_tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata["limner.config"] = metadata["limner.config"].replace('trigger = "miraxo"', 'trigger = "other"')


# What a node returns, and what is said of it.
BAD = {
    "NaN": (fill(torch.nan), "values that are no numbers"),
    "infinite": (fill(torch.inf), "values that are infinite"),
    "wrong shape": (changed(widen), "of another shape"),
    "missing": (changed(drop), "without 1 of"),
    "additional": (changed(add), "layers that this run does not train"),
    "other family": (other_family, "an adapter for Stable Diffusion XL"),
    "wrong sum": (lambda run: (returns.adapter(run), "0" * 64), "another checksum"),
    "no change": (changed(still), "changes nothing"),
    "other settings": (changed(reseed), "trained with other settings: trigger"),
    "empty": (changed(lambda tensors, _: tensors.clear()), "without any tensor"),
}


def work(run: Run, *nodes: Returning) -> int:
    left = list(nodes)
    return relay.work(run, SimpleNamespace(place=lambda devices, wait: left.pop(0)))


@pytest.fixture
def run(character: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(relay, "EVERY", 0)
    return runs.create(config.build({"name": "rin", "dataset": "rin", "trigger": "miraxo"}))


@pytest.mark.parametrize("as_checkpoint", [False, True], ids=["result", "checkpoint"])
@pytest.mark.parametrize(("bad", "words"), BAD.values(), ids=BAD)
def test_what_the_run_would_not_have_written_is_not_taken(
    run: Run,
    tmp_path: Path,
    bad: Callable[[Run], tuple[bytes, str]],
    words: str,
    as_checkpoint: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept: list[set[str]] = []

    class Next(Returning):
        def begin(self) -> None:
            kept.append({path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*.safetensors")})
            super().begin()

    second = Next(tmp_path / "second")
    assert work(run, Returning(tmp_path / "first", bad, as_checkpoint), second) == 0
    assert words in capsys.readouterr().err
    checkpoint = {f"checkpoints/000003/{name}" for name in (checkpoints.ADAPTER, checkpoints.OPTIMIZER)}
    assert kept == [set() if as_checkpoint else checkpoint], "nothing of the bad one, but what was good before"
    assert run.export.read_bytes() == second.sent
    state = runs.look(run).state
    assert (state.end, state.export) == ("finished", "rin.safetensors")
    assert state.sha256[run.config_file.name] == storage.sha256(run.config_file)
    assert any("was lost; it goes on elsewhere" in warning for warning in state.warnings)


def test_each_is_told_in_its_own_words() -> None:
    assert len({words for _make, words in BAD.values()}) == len(BAD)


def test_a_run_without_its_adapter_has_not_ended(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Forgetful(Returning):
        def begin(self) -> None:
            super().begin()
            self._run.export.unlink()

    good_one = Returning(tmp_path / "second")
    assert work(run, Forgetful(tmp_path / "first"), good_one) == 0
    assert "did not send it" in capsys.readouterr().err
    assert run.export.read_bytes() == good_one.sent
