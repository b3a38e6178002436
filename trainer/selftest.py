"""Self-test of this machine: train micro on each device and precision, and compare with what a CPU gave.

Each case is trained, resumed, exported, loaded and drawn with by processes like those of any run, in a home folder of
its own. The report can be attached to an issue: it has no paths.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from trainer import config, devices, foreign_text, processes, runs
from trainer.data import dataset
from trainer.errors import UserError
from trainer.runs import Run
from trainer.runs.events import State

STEPS, RESUMED_AT = 8, 4
# Losses of these steps on a CPU in fp32 (x86, torch 2.13), and how far others may be from them. In fp32 the order of
# sums differs, and cards multiply in TF32; bf16 on that CPU differed by 0.0046.
LOSSES = Path(__file__).with_name("selftest_losses.json")
BOUNDS = {"fp32": 0.005, "bf16": 0.02, "fp16": 0.02}
FLAT = 5.0  # standard deviation of the values of an image, 0 to 255, below which nothing is drawn
PATIENCE = 600  # seconds for one process


@dataclass
class Case:
    """One device and precision, and what was found: a sentence for each check that failed."""

    device: str
    precision: str
    name: str = ""
    losses: list[float] = field(default_factory=list)
    deviation: float = 0.0  # of the losses, the largest, relative
    seconds: float = 0.0  # a step
    memory: int = 0  # bytes at the peak
    plan: str = ""
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return not self.failures


def cases() -> list[Case]:
    """List the devices of this machine with the precisions that each computes in itself."""
    best = devices.best()
    listed = [Case("cpu", "fp32")]
    with _device("cpu"):
        if devices.best_precision(devices.best()) == "bf16":
            listed.append(Case("cpu", "bf16"))
    if devices.is_accelerator(best):
        half = devices.best_precision(best)
        listed += [Case(best.type, precision) for precision in dict.fromkeys(("fp32", half, "fp16"))]
    return listed


def run(case: Case) -> None:
    """Check one case; what fails is noted in it."""
    with tempfile.TemporaryDirectory(prefix="limner-selftest-") as folder, _home(Path(folder)), _device(case.device):
        try:
            _check(case, runs.create(_settings(case.precision)))
        except UserError as error:
            case.failures.append(f"{error.message} {error.remedy}".strip())


def _settings(precision: str) -> config.TrainConfig:
    return config.build(
        {
            "name": "selftest",
            "dataset": str(dataset.find_example("example-character")),
            "trigger": "miraxo",
            "training": {"steps": STEPS, "batch_size": 4, "precision": precision, "devices": 1},
            "preview": {"every": STEPS, "steps": 4, "prompts": ["miraxo"]},
            "checkpoint": {"every": RESUMED_AT},
        }
    )


def _check(case: Case, trained: Run) -> None:
    state = _work(trained)
    case.name, case.memory = state.device, state.memory
    case.seconds = runs.look(trained).seconds_per_step or 0.0
    settings = trained.config().training
    case.plan = f"{settings.micro_batches} x {settings.gradient_checkpointing}"
    case.losses = losses = _losses(state)
    case.deviation = deviation(losses, foreign_text.read_json(LOSSES))
    checks: list[tuple[bool, str]] = [
        (case.deviation <= BOUNDS[case.precision], "The losses differ from the reference by {share:.1%}."),
        (_resumed(trained, losses, case), "A resumed run goes on differently."),
        (case.memory > 0, "The memory that is taken cannot be read."),
        (_draws(trained.folder / "previews"), "The preview shows nothing."),
        (_is_verified(state), "The adapter file does not load where it should."),
        (_is_used(trained), "The adapter file does not change what is drawn."),
    ]
    case.failures += [sentence.format(share=case.deviation) for passed, sentence in checks if not passed]


def _work(run: Run) -> State:
    """Train or resume a run in a process of its own, and return its state.

    Raises:
        UserError: it did not finish; it says why.
    """
    _limner("work", run.folder)
    state = runs.look(run).state
    if state.end != "finished":
        raise UserError(state.message or "The training ended without a message.", state.remedy)
    return state


def _limner(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    with processes.start(command, stderr=processes.NOWHERE) as process:
        process.wait(timeout=PATIENCE)


def _resumed(trained: Run, losses: list[float], case: Case) -> bool:
    """Return True if a run that is resumed from the middle goes on as the one that was not interrupted.

    On a CPU it is the same bit for bit; an accelerator may add numbers up in another order.
    """
    resumed = Run(trained.folder.with_name("resumed"))
    step = f"{RESUMED_AT:06d}"
    shutil.copytree(trained.folder / "checkpoints" / step, resumed.folder / "checkpoints" / step)
    shutil.copy(trained.config_file, resumed.config_file)
    state = _work(resumed)
    again = _losses(state)
    if case.device == "cpu":
        return again == losses[RESUMED_AT:]
    return deviation(again, losses[RESUMED_AT:]) <= BOUNDS[case.precision]


def _losses(state: State) -> list[float]:
    return [state.losses[step] for step in sorted(state.losses)]


def deviation(losses: list[float], reference: list[float]) -> float:
    """Return the largest relative difference; infinite if there are more or fewer."""
    if len(losses) != len(reference):
        return float("inf")
    return max(abs(loss - other) / other for loss, other in zip(losses, reference, strict=True))


def _is_verified(state: State) -> bool:
    return any(loads for verified in state.verified for _program, loads, _text in verified.verdicts)


def _is_used(trained: Run) -> bool:
    """Return True if images with and without the adapter are drawn, and differ."""
    images = []
    for number, adapter in enumerate(((), ("--adapter", trained.export))):
        out = trained.folder / f"sample-{number}.png"
        _limner("sample", "--prompt", "miraxo", "--out", out, "--steps", "4", *adapter)
        if not out.is_file():
            return False
        with Image.open(out) as image:
            images.append(np.asarray(image.convert("RGB"), dtype=np.float32))
    return bool(images[1].std() > FLAT and (images[0] != images[1]).any())


def _draws(folder: Path) -> bool:
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            return float(np.asarray(image.convert("RGB"), dtype=np.float32).std()) > FLAT
    return False


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    with _environment("LIMNER_HOME", str(folder)):
        (folder / "outputs").mkdir()
        yield


def _device(kind: str) -> AbstractContextManager[None]:
    return _environment("LIMNER_DEVICE", "cpu" if kind == "cpu" else "")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
