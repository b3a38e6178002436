"""The ways back from a step that failed: less memory, or from the start at half the learning rate."""

from dataclasses import dataclass

from trainer.config import TrainConfig, adjustments
from trainer.errors import UserError
from trainer.families import Adapter, Family
from trainer.runs import Run
from trainer.training import checkpoint, memory
from trainer.training.checkpoint import TrainState

RESTARTS = 3


@dataclass(frozen=True)
class Recovery:
    """Changes the settings of a run after a failed step, saves and reports them.

    Each way raises the error itself if it does not help. A device that is lost ends the process, and the worker starts
    a new one (`trainer.worker`).
    """

    family: Family
    adapter: Adapter
    run: Run

    def with_less_memory(self, config: TrainConfig, state: TrainState, error: RuntimeError) -> TrainConfig:
        """Return settings that take less memory, after a gradient did not fit; the step is repeated.

        Raises:
            RuntimeError: the error itself, if it was something else, or nothing takes less memory.
        """
        config = memory.fall_back(config, self.family, self.run, error)
        state.optimizer.zero_grad()
        return config

    def from_start_with_less(
        self, config: TrainConfig, step: int, error: RuntimeError
    ) -> tuple[TrainConfig, TrainState]:
        """Return settings that take less memory and the state of a new run, after the optimizer did not fit.

        Raises:
            RuntimeError: the error itself, if it was something else, or not in the first step: which weights the
                optimizer has changed is not known.
        """
        if step:
            raise error
        config = memory.fall_back(config, self.family, self.run, error)
        self.adapter.reset(config.seed)
        return config, initial_state(config, self.adapter)

    def at_half_the_rate(self, config: TrainConfig, step: int, norm: float) -> tuple[TrainConfig, TrainState]:
        """Return settings with half the learning rate and the state of a new run, after the gradient exploded.

        Raises:
            UserError: the run has restarted too often.
        """
        if config.record.restarts >= RESTARTS:
            raise UserError(
                "The training became unstable {times} times, each time at half the previous learning rate.",
                "Lower the learning rate or alpha a lot, or look for a broken image.",
                adjustments.lower_learning_rate(config),
                times=RESTARTS + 1,
            )
        rate = config.optimizer.learning_rate / 2
        self.run.warn(
            "The gradient norm jumped to {norm:.3g} at step {step}: the run starts again at a learning rate of "
            "{rate:g}.",
            norm=norm,
            step=step,
            rate=rate,
        )
        optimizer = config.optimizer.model_copy(update={"learning_rate": rate})
        record = config.record.model_copy(update={"restarts": config.record.restarts + 1})
        config = config.model_copy(update={"optimizer": optimizer, "record": record})
        if self.run.is_main:
            checkpoint.remove_all(self.run)
        self.run.save_config(config)
        self.adapter.reset(config.seed)
        return config, initial_state(config, self.adapter)


def initial_state(config: TrainConfig, adapter: Adapter) -> TrainState:
    """Return the optimizer of an adapter, and its moving average if there is one, before the first step."""
    optimizer = config.optimizer.build(adapter.groups(config.training.text_encoder_lr_factor))
    optimizer.zero_grad()  # of a run that starts again
    state = TrainState(optimizer)
    if config.training.ema_decay:
        state.average.extend(parameter.detach().clone() for parameter in state.parameters())
    return state
