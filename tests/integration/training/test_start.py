"""Training that starts from an adapter file: what it does at first, with what, and what it refuses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.training.test_train import assert_resumes, finish, same, settings, stopped_at
from trainer import families, runs
from trainer.adapter_files import reader, transforms
from trainer.config import ModelConfig
from trainer.config.adapter import Lora
from trainer.errors import UserError
from trainer.rng import generator
from trainer.train import train


@pytest.fixture
def first(tiny_sd: Path, tmp_path: Path) -> Path:
    """An adapter of rank 4 that changes a lot."""
    family = families.load(ModelConfig(base=str(tiny_sd)), torch.device("cpu"), torch.float32)
    adapter = families.attach(family, Lora(rank=4, alpha=2.0), text_encoder=False, seed=3)
    for layer in adapter.layers.values():
        layer.up.data.normal_(std=0.3, generator=generator(5))
    path = tmp_path / "first.safetensors"
    save_file(adapter.tensors(), path)
    return path


def started(tiny_sd: Path, config: Lora, *, text_encoder: bool = False) -> dict[str, torch.Tensor]:
    """The changes of a fresh adapter of these settings, by module."""
    family = families.load(ModelConfig(base=str(tiny_sd)), torch.device("cpu"), torch.float32)
    adapter = families.attach(family, config, text_encoder=text_encoder, seed=0)
    return {name: layer.delta() for name, layer in adapter.layers.items()}


@pytest.mark.parametrize(
    "config",
    [Lora(rank=4, alpha=4.0), Lora(rank=8, alpha=1.0), Lora(rank=8, rslora=True), Lora(rank=6, targets="conv")],
    ids=["same rank", "higher rank", "rsLoRA", "more layers"],
)
def test_it_starts_with_exactly_what_the_file_does(tiny_sd: Path, first: Path, config: Lora) -> None:
    changes = started(tiny_sd, config.model_copy(update={"start": str(first)}))
    modules = reader.read(first).modules
    for name, change in changes.items():
        expected = modules[name].delta() if name in modules else torch.zeros_like(change)
        assert torch.allclose(change, expected, rtol=1e-4, atol=1e-6), name
    assert modules.keys() <= changes.keys()


def test_a_lower_rank_is_the_best_approximation(tiny_sd: Path, first: Path) -> None:
    changes = started(tiny_sd, Lora(rank=2, start=str(first)))
    best = transforms.resize(reader.read(first), 2)
    assert all(
        torch.allclose(change, best.modules[name].delta(), rtol=1e-3, atol=1e-5) for name, change in changes.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["lokr", "loha"])
def test_a_file_of_another_kind_is_started_from(character: Path, tiny_sd: Path, form: str) -> None:
    run = runs.create(settings(tiny_sd, adapter__kind=form, adapter__rank=2, training__steps=2))
    finish(run)
    modules = reader.read(run.export).modules
    changes = started(tiny_sd, Lora(rank=32, start=str(run.export)))
    for name, change in changes.items():
        assert torch.allclose(change, modules[name].delta(), rtol=1e-2, atol=1e-4), name


@pytest.mark.slow
def test_a_run_goes_on_from_a_file_and_is_resumed(character: Path, tiny_sd: Path, first: Path) -> None:
    run = assert_resumes(settings(tiny_sd, adapter__start=str(first), training__ema_decay=0.5), 3)
    assert not same(finish(runs.create(settings(tiny_sd))), load_file(run.export))
    assert str(first.parent) not in str(reader.read(run.export).metadata)
    assert not [warning for warning in runs.look(run).state.warnings if "best approximation" in warning]


def test_a_start_that_changed_or_is_gone_is_not_resumed_with(character: Path, tiny_sd: Path, first: Path) -> None:
    run = runs.create(settings(tiny_sd, adapter__start=str(first), adapter__rank=2))
    train(run.config(), stopped_at(3, run))
    assert [warning for warning in runs.look(run).state.warnings if "has rank 4, this run 2" in warning]
    tensors = load_file(first)
    save_file({name: tensor * 0.5 for name, tensor in tensors.items()}, first)
    with pytest.raises(UserError, match="started from has changed"):
        finish(run)
    first.unlink()
    with pytest.raises(UserError, match="to start from is not there"):
        finish(run)


def test_what_cannot_be_started_from_is_refused(tiny_sd: Path, first: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layers that this run does not train"):
        started(tiny_sd, Lora(rank=4, start=str(first), targets="attention"))
    wrong = tmp_path / "wrong.safetensors"
    save_file({name: (torch.cat([t, t]) if "lora_up" in name else t) for name, t in load_file(first).items()}, wrong)
    with pytest.raises(UserError, match="different size in the base model"):
        started(tiny_sd, Lora(rank=4, start=str(wrong)))
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="noise"):
        started(tiny_sd, Lora(rank=4, start=str(noise)))
    with pytest.raises(UserError, match="cannot start from another adapter"):
        settings(tiny_sd, adapter__start=str(first), adapter__dora=True)
