"""A worker trains once in its life; here one process trains many times, in different precisions."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from tests.workers import Workers
from trainer import families
from trainer.config import ModelConfig
from trainer.families import Family


@pytest.fixture(autouse=True, scope="session")
def _frozen() -> None:
    """Let no collection of garbage look at the libraries again: a run asks for one before it measures memory."""
    import diffusers

    import trainer.train

    diffusers.StableDiffusionPipeline, trainer.train  # noqa: B018 - loaded when they are named
    torch.set_num_threads(1)  # these models are tiny, and other tests run beside
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


@pytest.fixture
def family(tiny_sd: Path) -> Family:
    return families.load(ModelConfig(base=str(tiny_sd)), torch.device("cpu"), torch.float32)
