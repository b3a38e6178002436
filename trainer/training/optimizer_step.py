"""One optimizer step: compute, accumulate, clip and check the gradient, then step."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from torch import Generator, Tensor
from torch.amp.grad_scaler import GradScaler

from trainer import devices
from trainer.config import TrainConfig, adjustments
from trainer.errors import UserError
from trainer.families import Adapter, Family
from trainer.rng import generator, seed_dropout
from trainer.runs import Run, events
from trainer.training.checkpoint import TrainState
from trainer.training.inputs.batches import Batch, Batches
from trainer.training.loss import add_noise, predict_base, training_loss

EARLY = 0.15  # share of the steps in which the instability guard is on
FEWEST = 5  # gradient norms that it takes a median of
MOST_TOGETHER = 8  # steps at most for which the base predicts at once


def micro_batches(
    accelerator: Accelerator,
    family: Family,
    adapter: Adapter,
    batches: Batches,
    config: TrainConfig,
    places: Iterable[tuple[int, int]],
) -> Iterator[tuple[Batch, Generator]]:
    """Yield this process's micro-batches of the batches at `places`, each with the generator of its noise.

    All randomness follows from the place (step, micro-step) and the number of the micro-batch. Dropout is seeded
    before each.
    """
    processes = accelerator.num_processes
    count = config.training.micro_batches * processes
    for place in places:
        whole = batches.at(*place)
        for number in range(accelerator.process_index, count, processes):
            batch = whole.part(number, count)
            if batch.preserved:
                with accelerator.autocast():
                    known = base_prediction(family, adapter, batches, config, place, (number, count))
                batch = replace(batch, base_prediction=known)
            for turn, part in enumerate(batch.passes()):
                seed_dropout(config.seed, *place, "dropout", *([number] if number else []), *(["preserved"] * turn))
                yield part, generator(config.seed, *place, "noise")


def base_prediction(
    family: Family,
    adapter: Adapter,
    batches: Batches,
    config: TrainConfig,
    place: tuple[int, int],
    part: tuple[int, int],
) -> Tensor:
    """Return what the base predicts for the latents to preserve of a micro-batch, `part` = its number and how many.

    They are a fraction of it. So those of as many steps as make up a micro-batch are predicted together, which takes
    less time than one by one, and no more memory than the micro-batch itself. Which steps go together does not depend
    on where a run was resumed, as the last bits follow from it.
    """
    known = batches.base_predictions
    if (place, part) not in known:
        images = -(-config.training.batch_size // part[1])
        preserved = math.ceil(config.preservation.share * config.training.batch_size / part[1])
        together = min(MOST_TOGETHER, max(1, images // preserved))
        accumulation = config.training.gradient_accumulation
        number = place[0] * accumulation + place[1]
        first = number - number % together
        places = [divmod(other, accumulation) for other in range(first, first + together)]
        noised = {}
        for other in places:
            batch = batches.at(*other).part(*part)
            if batch.preserved:
                rng = generator(config.seed, *other, "noise")
                noised[other, part] = batch, add_noise(family, batch, config.objective, rng)
        predictions = predict_base(family, adapter, list(noised.values()))
        for key in [key for key in known if key[0] not in places or key[1][1] != part[1]]:
            del known[key]  # of steps that are over
        known.update(zip(noised, predictions, strict=True))
    return known[place, part]


def add_gradient(
    accelerator: Accelerator,
    family: Family,
    adapter: Adapter,
    batch: Batch,
    config: TrainConfig,
    rng: Generator,
) -> Tensor:
    """Add the gradient of one micro-batch to those of the adapter; return its part of the loss of its batch."""
    with accelerator.autocast():
        loss = training_loss(family, adapter, batch, config, rng)
    accelerator.backward(loss / config.training.gradient_accumulation)
    return loss.detach()


def restore_scaler(scaler: GradScaler | None, state: TrainState) -> GradScaler | None:
    """Return the scaler of fp16 training as a checkpoint left it; None in other precisions, which need none."""
    if scaler is not None and "scaler" in state.extra:
        scaler.load_state_dict(state.extra["scaler"])
    return scaler


def clip(state: TrainState, limit: float, scaler: GradScaler | None) -> Tensor:
    """Scale the gradient down to a norm of `limit` (0 = no limit); return its norm before, a number on its device."""
    if scaler:
        scaler.unscale_(state.optimizer)
    return torch.nn.utils.clip_grad_norm_(state.parameters(), limit or float("inf"))


class ExplodedError(Exception):
    """The gradient of a step was far larger than those before it."""

    def __init__(self, step: int, norm: float) -> None:
        super().__init__(step, norm)
        self.step, self.norm = step, norm


@dataclass(frozen=True)
class _Taken:
    """A step that was taken; `read` returns its loss and the norm of its gradient."""

    step: int
    read: Callable[[], list[float]]
    rate: float
    started_at: float
    device: torch.device


@dataclass
class Readings:
    """Reports steps, with losses and gradient norms that are read while the device is at work on the next step.

    If the processor waited for each step's numbers, the device would wait for it in turn before the next one. What a
    step did to an adapter is noticed a step late then, but before anything is saved. Several processes, which have to
    notice it in the same step, and devices that share main memory do not go ahead.
    """

    run: Run
    accelerator: Accelerator
    scaler: GradScaler | None
    _taken: list[_Taken] = field(default_factory=list)
    _read_at: float = 0.0

    def add(self, step: int, loss: Tensor, norm: Tensor, rate: float, started_at: float) -> None:
        """Note completed step `step`, which began at `started_at` of the monotonic clock."""
        self._taken.append(_Taken(step, devices.read_later(loss, norm), rate, started_at, loss.device))

    def report(self, config: TrainConfig, state: TrainState, *, every: bool = False) -> None:
        """Check and report the steps that are not reported yet; the newest may wait, unless `every` one is to be.

        Raises:
            ExplodedError: a gradient exploded in a step; it is not reported, nor are those after it.
            UserError: a loss or a gradient is not finite.
        """
        goes_ahead = devices.has_own_memory(self.accelerator.device) and self.accelerator.num_processes == 1
        while len(self._taken) > int(goes_ahead and not every):
            taken = self._taken.pop(0)
            loss, norm = taken.read()
            if exploded(norm, taken.step - 1, config, state):
                self._taken.clear()
                raise ExplodedError(taken.step - 1, norm)
            check(loss, norm, taken.step - 1, config, self.scaler)
            before, self._read_at = self._read_at, time.monotonic()
            event = events.Step(
                step=taken.step,
                loss=loss,
                learning_rate=taken.rate,
                grad_norm=norm,
                seconds=self._read_at - max(before, taken.started_at),
                memory=devices.peak_memory(taken.device),
            )
            self.run.report(event)


def exploded(norm: float, step: int, config: TrainConfig, state: TrainState) -> bool:
    """Return True if the gradient norm of an early step is far above the median of those before it.

    The early norms are part of the state, so that they are the same in a resumed run. With a scaler a step that is not
    finite is skipped instead, which is how fp16 finds its scale.
    """
    if not config.training.spike_threshold or step >= EARLY * config.training.steps:
        return False
    norms: list[float] = state.extra.setdefault("norms", [])
    # NaN is far above, too.
    far = len(norms) >= FEWEST and not norm <= config.training.spike_threshold * statistics.median(norms)
    if math.isfinite(norm):
        norms.append(norm)
    return far and (math.isfinite(norm) or "scaler" not in state.extra)


def check(loss: float, norm: float, step: int, config: TrainConfig, scaler: GradScaler | None) -> None:
    """Stop after a step that destroyed the adapter; a scaler skips gradients that are too large by itself.

    Raises:
        UserError: the loss or the gradient is not finite.
    """
    if not math.isfinite(loss) or not (math.isfinite(norm) or scaler):
        raise UserError(
            "The training became unstable after step {step}: loss {loss}, gradient norm {norm}.",
            "Lower the learning rate, or train in bf16 or fp32; the last checkpoint is kept.",
            adjustments.lower_learning_rate(config),
            step=step,
            loss=loss,
            norm=norm,
        )


def advance(state: TrainState, rate: float, scaler: GradScaler | None) -> None:
    """Step the optimizer at a learning rate, each group with its factor, and clear the gradient."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    if scaler:
        scaler.step(state.optimizer)
        scaler.update()
        state.extra["scaler"] = scaler.state_dict()
    else:
        state.optimizer.step()
    state.optimizer.zero_grad()


def rehearse(config: TrainConfig, adapter: Adapter) -> list[Tensor]:
    """Take a step with copies of an adapter's weights; return the tensors that an optimizer keeps from then on."""
    groups = adapter.groups(config.training.text_encoder_lr_factor)
    for group in groups:
        group["params"] = [parameter.detach().clone().requires_grad_() for parameter in group["params"]]
        for copy in group["params"]:
            copy.grad = torch.zeros_like(copy)
    optimizer = config.optimizer.build(groups)
    optimizer.step()
    states = itertools.chain.from_iterable(state.values() for state in optimizer.state.values())
    return [value for value in states if isinstance(value, Tensor)]
