"""A run fits into the memory there is: measured for real, computed in parts, with the same result."""

import gc
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from tests import faults
from tests.conftest import CHECKOUT
from tests.fake_cuda import measure, waits
from tests.integration.sampling.test_sampler import before_each, run_out
from tests.integration.training.test_train import attached, cases, finish, finished, losses, same, settings
from trainer import devices, families, processes, runs
from trainer.config import ModelConfig, TrainConfig
from trainer.data import dataset
from trainer.errors import UserError, is_out_of_memory
from trainer.families import Family
from trainer.families.hardware import gradient_checkpointing, offload
from trainer.optim.optimizers import ROWS
from trainer.runs import Run, events
from trainer.train import train
from trainer.training import memory, optimizer_step
from trainer.training.inputs import encode
from trainer.training.memory import GB, MemoryPlan
from trainer.training.recovery import initial_state
from trainer.worker import explain


@pytest.fixture(autouse=True)
def nothing_left_over() -> None:
    """What other tests freed is given back: taken again, it would not be seen as memory that is used."""
    gc.collect()
    processes.trim_malloc()


MB = 2**20
MEASURED = {"training__micro_batches": 0, "training__gradient_checkpointing": "auto"}
# Adam makes a rounding error of a tiny gradient as large as the rate; at this one it stays below the last digits.
RATE = {"optimizer__learning_rate": 0.001}


def close(first: dict[str, Tensor], second: dict[str, Tensor], most: float = 1e-5) -> bool:
    return first.keys() == second.keys() and all(float((first[key] - second[key]).abs().max()) <= most for key in first)


def scarce(when: Callable[[Tensor], bool]) -> AbstractContextManager[None]:
    """Let the denoiser ask this machine for a petabyte whenever its input meets a condition."""
    return before_each(UNet2DConditionModel, lambda noisy: run_out() if when(noisy) else None)


def newest(run: Run) -> dict[str, Tensor]:
    """The adapter of a finished run in fp32."""
    return load_file(sorted((run.folder / "checkpoints").iterdir())[-1] / "adapter.safetensors")


def test_the_ladder(tiny_sd: Path) -> None:
    """Weights that wait cost the most time, and only a card has them elsewhere."""

    def rungs(kind: str = "cpu", **changes: int | str) -> list[tuple[int, str, str]]:
        options = MEASURED | {f"training__{key}": value for key, value in changes.items()}
        training = settings(tiny_sd, **options).training
        plans = memory.plans(training, max(1, training.devices), torch.device(kind))
        assert [plan.order for plan in plans] == sorted((plan.order for plan in plans), reverse=True)
        return [(plan.micro_batches, plan.recomputed, plan.waiting) for plan in plans]

    def first(*counts: int) -> list[tuple[int, str, str]]:
        return [(count, "off", "off") for count in counts]

    def last(count: int) -> list[tuple[int, str, str]]:
        return [(count, way, "off") for way in ("off", "feed-forward", "half", "transformers", "all")]

    assert rungs(batch_size=4) == [*first(1, 2), *last(4)]
    assert (rungs(batch_size=5, devices=2), rungs(batch_size=1)) == ([*first(1), *last(2)], last(1))
    assert rungs(batch_size=6, gradient_checkpointing="off") == first(1, 2, 4, 6)
    assert rungs(batch_size=6, micro_batches=3) == last(3)
    assert rungs("cuda", batch_size=2)[-3:] == [(2, "all", "off"), (2, "all", "half"), (2, "all", "all")]
    assert rungs("mps", batch_size=2)[-1] == (2, "all", "off"), "it has no memory of its own"
    assert rungs("cuda", batch_size=2, offload="half") == [(1, "all", "half"), (2, "all", "half")]
    assert rungs("cuda", batch_size=1, offload="off")[-1] == (1, "all", "off")
    assert rungs(batch_size=1, offload="all", gradient_checkpointing="all") == [(1, "all", "off")]
    with pytest.raises(UserError, match="too many for a batch of 4"):
        rungs(batch_size=4, devices=2, micro_batches=3)
    with pytest.raises(UserError, match="devices: too many for a batch of 4"):
        rungs(batch_size=4, devices=5)
    with pytest.raises(UserError, match="blocks whose weights wait are computed twice"):
        rungs(offload="all", gradient_checkpointing="half")


@pytest.mark.slow
def test_parts_of_a_batch_teach_what_the_whole_does(character: Path, tiny_sd: Path) -> None:
    options = RATE | {"training__steps": 2, "training__gradient_accumulation": 2, "training__text_encoder": True}
    options |= {"objective__masked_loss": True, "objective__weighting": "min-snr", "images__flip": True}
    options |= {"captions__dropout": 0.3, "preservation__share": 0.4}
    whole, parts = (runs.create(settings(tiny_sd, training__micro_batches=parts, **options)) for parts in (1, 3))
    finish(whole)
    finish(parts)
    assert close(newest(parts), newest(whole))
    assert not same(newest(parts), newest(whole)), "sums in another order differ in their last bits"
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="others do not count it, and a short peak is missed")
def test_a_peak_of_no_time_is_measured() -> None:
    present = psutil.Process().memory_info().rss
    with memory.peak() as highest:
        len(b"x" * 256 * MB)  # no other thread runs meanwhile
    assert highest[0] - present == pytest.approx(256 * MB, abs=32 * MB)


def test_a_peak_that_no_system_counts_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "_FORGET", tmp_path / "none")
    present = psutil.Process().memory_info().rss
    with memory.peak() as highest:
        block, deadline = b"x" * 256 * MB, time.monotonic() + 60
        while highest[0] < present + 200 * MB and time.monotonic() < deadline:
            time.sleep(memory.SAMPLED_EVERY)
        del block
    assert highest[0] - present == pytest.approx(256 * MB, abs=32 * MB)


def heavy(sizes: dict[str, int], touched: list[MemoryPlan]) -> Callable[[TrainConfig], None]:
    """Computes nothing, but really takes so many MB for each picture of a part."""

    def compute(config: TrainConfig) -> None:
        way = config.training.gradient_checkpointing
        assert way != "auto"
        touched.append(MemoryPlan(config.training.micro_batches, way))
        pictures = -(-config.training.batch_size // config.training.micro_batches)
        torch.ones(pictures * sizes[way] * MB // 4).sum()

    return compute


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "room", "expected"),
    [
        (8, 1400, (1, "off")),
        (6, 200, (6, "off")),  # in four parts there would be two images in the largest
        (8, 84, (8, "half")),  # between 72 and 96, as the memory of the process itself moves by some MB
    ],
)
def test_the_first_rung_that_fits_is_taken(
    character: Path, family: Family, tiny_sd: Path, batch: int, room: int, expected: tuple[int, str]
) -> None:
    """With 128 MB for each picture of a batch, then less and less."""
    touched: list[MemoryPlan] = []
    present = psutil.Process().memory_info().rss
    config = settings(tiny_sd, training__batch_size=batch, training__memory=(present + room * MB) / GB, **MEASURED)
    run = runs.create(config)
    compute = heavy({"off": 128, "feed-forward": 96, "half": 72, "transformers": 72, "all": 32}, touched)
    made = memory.fit(config, family, Accelerator(cpu=True), run, compute)
    assert (made.training.micro_batches, made.training.gradient_checkpointing) == expected
    assert run.config() == made, "it is written down"
    assert {plan.micro_batches for plan in touched} == {batch}, "only single pictures were computed"
    warnings = [event for event in events.read(run.log)[0] if isinstance(event, events.Warned)]
    assert len(warnings) == (expected != (1, "off"))
    touched.clear()
    assert memory.fit(made, family, Accelerator(cpu=True), run, compute) == made
    assert not touched, "a run that goes on is not measured again"
    little = settings(tiny_sd, training__memory=(psutil.Process().memory_info().rss + 50 * MB) / GB, **MEASURED)
    compute = heavy(dict.fromkeys(memory.CHECKPOINTING, 200), [])
    with pytest.raises(UserError, match=r"not enough memory: even with one image at a time .* GB that are available"):
        memory.fit(little, family, Accelerator(cpu=True), run, compute)


def test_memory_that_is_set_is_what_there_is(tiny_sd: Path) -> None:
    cpu = torch.device("cpu")
    assert memory.limit(settings(tiny_sd, training__memory=3).training, cpu, 1) == 3 * GB
    assert memory.limit(settings(tiny_sd, training__memory=3).training, cpu, 2) == 1.5 * GB
    free = memory.limit(settings(tiny_sd).training, cpu, 1)
    assert psutil.Process().memory_info().rss < free < psutil.virtual_memory().total


def test_a_step_that_runs_out_of_memory_is_done_with_less(character: Path, tiny_sd: Path) -> None:
    """From step 2 on the model asks the machine for a petabyte whenever it sees more than one picture, then always."""
    options = RATE | {"training__steps": 3}
    run = runs.create(settings(tiny_sd, training__micro_batches=1, **options))
    steps = 0

    def count(event: events.Event) -> None:
        nonlocal steps
        steps = event.step if isinstance(event, events.Step) else steps

    with scarce(lambda batch: steps >= 1 and len(batch) > 1 and torch.is_grad_enabled()):
        train(run.config(), Run(run.folder, count))
    warnings = [warning for warning in runs.look(run).state.warnings if "ran out" in warning]
    sentence = "Memory ran out; from here on batches are split into {} micro-batches."
    assert (warnings, run.config().training.micro_batches) == ([sentence.format(2), sentence.format(4)], 4)
    usual = finished(tiny_sd, **options)
    assert close(newest(run), newest(usual))
    assert losses(run) == pytest.approx(losses(usual), abs=1e-5)
    least = runs.create(settings(tiny_sd, training__micro_batches=4, training__gradient_checkpointing="all"))
    with scarce(lambda _: True), pytest.raises(RuntimeError) as caught:
        train(least.config(), least)
    assert is_out_of_memory(caught.value)
    assert explain(caught.value).message == "There is not enough memory."


@pytest.mark.slow
def test_an_optimizer_without_memory_in_step_1_begins_again(character: Path, tiny_sd: Path) -> None:
    run, usual = (runs.create(settings(tiny_sd, training__micro_batches=parts, **RATE)) for parts in (1, 2))
    with faults.injected("full@1"):
        adapter = finish(run)
    assert run.config().training.micro_batches == 2
    assert "Memory ran out; from here on batches are split into 2 micro-batches." in runs.look(run).state.warnings
    assert same(adapter, finish(usual)), "as if it had begun so"


@pytest.mark.parametrize("kind", cases(ROWS, pytest.mark.nightly, ["adamw8bit", "muon", "prodigy-schedule-free"]))
def test_a_rehearsed_step_takes_what_the_optimizer_will_keep(family: Family, tiny_sd: Path, kind: str) -> None:
    config = settings(tiny_sd, optimizer__kind=kind, schedule__kind="constant")
    adapter = attached(family, tiny_sd, text_encoder=False)
    before = [parameter.detach().clone() for parameter in adapter.parameters()]
    rehearsed = optimizer_step.rehearse(config, adapter)
    assert all(torch.equal(old, new) for old, new in zip(before, adapter.parameters(), strict=True))
    state = initial_state(config, adapter)
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    kept = [value for values in state.optimizer.state.values() for value in values.values()]
    sizes = [value.nbytes for value in kept if isinstance(value, Tensor)]
    assert sum(tensor.nbytes for tensor in rehearsed) == sum(sizes) > 0


def test_a_paused_run_leaves_its_device_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU that is not here; on a CPU there is nothing to leave."""
    for device, expected in (("cuda", ["cpu", "paused", "cuda"]), ("cpu", ["paused"])):
        places: list[str] = []
        denoiser = torch.nn.Linear(1, 1)
        monkeypatch.setattr(denoiser, "to", lambda device, places=places: places.append(torch.device(device).type))
        family: Any = SimpleNamespace(device=torch.device(device), denoiser=denoiser)
        with memory.set_aside(family):
            places.append("paused")
        assert places == expected


@pytest.mark.slow
def test_preserved_images_are_generated_with_less_memory(character: Path, tiny_sd: Path) -> None:
    changes = {"preservation__share": 0.25, "preservation__generated_share": 1.0, "preservation__prompts": ["a dog"]}
    family = families.load(ModelConfig(base=str(tiny_sd)), torch.device("cpu"), torch.float32)
    greedy_for = [1]

    def generated() -> torch.Tensor:
        built = encode.build(family, dataset.read(character, "rin"), settings(tiny_sd, **changes), lambda *_: None)
        (file,) = built.preserved.values()
        latents = built.cache.get(file)["latents"]
        file.unlink()
        return latents

    with scarce(lambda _: bool(greedy_for and greedy_for.pop())):
        frugal = generated()
    assert not greedy_for
    assert offload.is_offloaded(family.denoiser)
    gradient_checkpointing.recompute(family, "off")
    assert torch.equal(generated(), frugal)


@pytest.mark.slow
def test_previews_without_memory_are_left_out(character: Path, tiny_sd: Path) -> None:
    run = runs.create(settings(tiny_sd))
    with scarce(lambda _: not torch.is_grad_enabled()):
        train(run.config(), run)
    state = runs.look(run).state
    assert state.end == "finished"
    assert "There was not enough memory for the previews of step 6." in state.warnings


WAYS = (*memory.CHECKPOINTING, "offload half", "offload all")


@pytest.fixture
def guards(request: pytest.FixtureRequest) -> Path:
    if torch.backends.cuda.is_built():
        pytest.skip("the pretended card needs a torch that is built without CUDA")
    cache: pytest.Cache = request.config.cache
    return cache.mkdir("fake_cuda")


def documented(title: str) -> dict[str, float]:
    """Return GB by way of gradient checkpointing and offloading from the table in the documentation."""
    text = (CHECKOUT / "docs" / "small-cards.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {re.escape(title)} \| (.*) \|$", text, re.M)
    return dict(zip(WAYS, map(float, row.split(" | ")), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("card", "expected"), [(6, 1.5), pytest.param(80, 9.4, marks=pytest.mark.nightly)])
def test_a_card_that_cannot_hold_t5_encodes_captions(guards: Path, card: int, expected: float) -> None:
    assert measure(guards, "flux", "captions", card=card)["captions"] == pytest.approx(expected, abs=0.1)


MEASURED_AT_NIGHT = {
    "Stable Diffusion 1.5, 512 pixels": "sd15 text-encoders",
    "Stable Diffusion 2.1, 512 pixels": "sd21 text-encoders",
    "Stable Diffusion XL, with its text encoders": "sdxl text-encoders",
    "Stable Diffusion 3.5 Medium, 1024 pixels": "sd3-5-medium",
    "Stable Diffusion 3.5 Large, 1024 pixels": "sd3-5-large",
    "FLUX.1, 1024 pixels": "flux",
    "Chroma, 1024 pixels": "chroma",
    "Z-Image, 1024 pixels": "z_image",
    "FLUX.2 klein, 1024 pixels": "flux2_klein",
    "FLUX.2 klein 9B, 1024 pixels": "flux2_klein-9b",
    "Qwen-Image, 1024 pixels": "qwen_image",
    "Krea 2, 1024 pixels": "krea2",
    "Anima, 1024 pixels": "anima",
}
WAITING = (
    "sd15",
    "sdxl text-encoders",
    "sd3",
    "flux",
    "chroma",
    "z_image",
    "flux2_klein",
    "qwen_image",
    "krea2",
    "anima",
)


@pytest.mark.nightly
@pytest.mark.parametrize(("title", "arguments"), MEASURED_AT_NIGHT.items())
def test_a_step_takes_what_the_documentation_says(title: str, arguments: str, guards: Path) -> None:
    taken = measure(guards, *arguments.split(), *WAYS)
    assert taken == pytest.approx(documented(title), abs=0.1)  # it is rounded, and libraries differ a little


@pytest.mark.slow
@pytest.mark.parametrize("arguments", cases(WAITING, pytest.mark.nightly, ["sd15"]))
def test_no_step_waits_for_the_card(arguments: str, guards: Path) -> None:
    """While it computes a step, the processor prepares the next."""
    assert waits(guards, *arguments.split()) == []
