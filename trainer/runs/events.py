"""Events that a worker reports, one JSON line each, and the state that they are folded into.

The log is append-only with one writer. A line cut off by a crash is ignored by readers and removed by the next writer.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from trainer.errors import Change
from trainer.i18n import _

SMOOTHING = 0.9  # of a loss curve
PREVIEW = re.compile(r"previews/\d{1,9}_(\d{1,3})\.png")  # step, number of the prompt


def _now() -> datetime:
    return datetime.now(UTC)


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")
    time: datetime = Field(default_factory=_now)


class Began(_Event):
    """A worker has taken the run, or got its cards; from here on the process `pid` is responsible for it.

    `cards` are the numbers of those that the run has, if this machine has several.
    """

    kind: Literal["began"] = "began"
    pid: int
    cards: tuple[str, ...] = ()


class Started(_Event):
    """The worker has the device and starts or resumes after `step` completed steps."""

    kind: Literal["started"] = "started"
    step: int
    steps: int
    pid: int
    device: str


class Phase(_Event):
    """Progress of something that is not a training step."""

    kind: Literal["phase"] = "phase"
    name: str
    done: int
    total: int


class Step(_Event):
    """One optimizer step is complete; `seconds` is its duration, `memory` the peak in bytes so far."""

    kind: Literal["step"] = "step"
    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    memory: int


class HeldOut(_Event):
    """The loss of the held-out images was measured after `step` steps."""

    kind: Literal["held_out"] = "held_out"
    step: int
    loss: float


class Preview(_Event):
    """A preview image was written; `file` is relative to the run folder, and `sha256` its checksum."""

    kind: Literal["preview"] = "preview"
    step: int
    file: str
    prompt: str
    seed: int
    sha256: str = ""


class Checkpoint(_Event):
    """A checkpoint is complete; `folder` is relative to the run folder."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    folder: str


class Warned(_Event):
    """A warning for the user that does not stop the run; one about the images was on the page before the start."""

    kind: Literal["warned"] = "warned"
    message: str
    about_images: bool = False


class Verified(_Event):
    """A file of the run was checked by the rules of other programs; `verdicts` are (program, loads, explanation)."""

    kind: Literal["verified"] = "verified"
    file: str
    verdicts: tuple[tuple[str, bool, str], ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Finished(_Event):
    """The run is done; `export` is the adapter file, relative to the run folder, and `exported` the step that it is of.

    `sha256` holds the checksums of the adapter files and the settings, by their path in the run folder.
    """

    kind: Literal["finished"] = "finished"
    step: int
    export: str
    exported: int | None = None  # None = the last one
    sha256: dict[str, str] = Field(default_factory=dict)


class Stopped(_Event):
    """The run was stopped on request after `step` completed steps; it can be resumed."""

    kind: Literal["stopped"] = "stopped"
    step: int


class Failed(_Event):
    """The run ended with an error; `traceback` is for the log and for bug reports only.

    `change` are suggested settings, by their path, with which it would do better. `template` is that of `UserError`.
    """

    kind: Literal["failed"] = "failed"
    message: str
    remedy: str
    traceback: str
    template: str = ""
    change: Change = Field(default_factory=dict)


Event = (
    Began | Started | Phase | Step | HeldOut | Preview | Checkpoint | Warned | Verified | Finished | Stopped | Failed
)
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


@dataclass(frozen=True)
class State:
    """State of a run, folded from its events.

    `end` is the last terminal event's kind, "" while there is none; `seconds` is the time that all steps took. `worked`
    is the time of this attempt: steps by the worker's own clock, which stands still while a computer sleeps, and what
    lies between them by the clock on the wall. `pace` is (step, worked) of the last 60 steps.
    """

    started: bool = False
    end: str = ""
    step: int = 0
    steps: int = 0
    pid: int = 0
    cards: tuple[str, ...] = ()
    device: str = ""
    phase: Phase | None = None
    losses: dict[int, float] = field(default_factory=dict)
    learning_rates: dict[int, float] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    pace: tuple[tuple[int, float], ...] = ()
    memory: int = 0
    seconds: float = 0.0
    worked: float = 0.0
    previews: tuple[Preview, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()
    warnings: tuple[str, ...] = ()
    export: str = ""
    exported: int = 0
    sha256: dict[str, str] = field(default_factory=dict)
    verified: tuple[Verified, ...] = ()
    message: str = ""
    remedy: str = ""
    traceback: str = ""
    template: str = ""
    change: Change = field(default_factory=dict)
    updated: datetime | None = None

    def previews_by_prompt(self) -> dict[int, dict[int, Preview]]:
        """Return the previews by the number of their prompt, then by step, both ascending.

        A log may come from anywhere: one whose file is not named as previews are is left out.
        """
        rows: dict[int, dict[int, Preview]] = {}
        for preview in sorted(self.previews, key=lambda preview: preview.step):
            if match := PREVIEW.fullmatch(preview.file):
                rows.setdefault(int(match[1]), {})[preview.step] = preview
        return dict(sorted(rows.items()))


def append(path: Path, event: Event) -> None:
    """Add an event to a log; a line that a crash left unfinished is cut off first."""
    line = (event.model_dump_json() + "\n").encode()
    with path.open("ab+") as log:
        end = log.tell()
        if end:
            log.seek(end - 1)
            if log.read(1) != b"\n":
                log.seek(0)
                log.truncate(log.read().rfind(b"\n") + 1)
        log.write(line)


def read(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Read events from byte `offset` on; return them and the offset to go on from.

    An unfinished last line is left for later. A complete line that is not an event (a damaged disk, an edited log) is
    skipped.
    """
    try:
        with path.open("rb") as log:
            log.seek(offset)
            data = log.read()
    except FileNotFoundError:
        return [], 0
    except OSError:  # one run that cannot be read keeps no page from opening
        return [], offset
    events, length = parse(data)
    return events, offset + length


def parse(data: bytes) -> tuple[list[Event], int]:
    """Return the events in a piece of a log, and the length of their lines; what `read` skips is left out."""
    end = data.rfind(b"\n") + 1
    events = []
    for line in data[:end].splitlines():
        try:
            events.append(_EVENT.validate_json(line))
        except (ValidationError, json.JSONDecodeError):
            continue
    return events, end


def fold(state: State, events: Iterable[Event]) -> State:
    """Return the state after more events. Folding a log in one go or in pieces gives the same state."""
    # Copies, which _fold_one may change.
    state = replace(state, losses=dict(state.losses), learning_rates=dict(state.learning_rates))
    for event in events:
        worked = state.worked
        if not isinstance(event, Step) and state.updated:
            # A clock may be set back.
            worked += max(0.0, event.time.timestamp() - state.updated.timestamp())
        state = replace(_fold_one(replace(state, worked=worked), event), updated=event.time)
    return state


def _fold_one(state: State, event: Event) -> State:
    match event:
        case Began():
            return replace(state, pid=event.pid, cards=event.cards, pace=())
        case Started():
            return _after_start(state, event)
        case Phase():
            return replace(state, phase=event)
        case Step():
            state.losses[event.step] = event.loss
            state.learning_rates[event.step] = event.learning_rate
            worked = state.worked + event.seconds
            return replace(
                state,
                step=event.step,
                phase=None,
                learning_rate=event.learning_rate,
                memory=event.memory,
                seconds=state.seconds + event.seconds,
                worked=worked,
                pace=(*state.pace[-59:], (event.step, worked)),
            )
        case HeldOut():
            return replace(state, held_out={**state.held_out, event.step: event.loss})
        case Preview() | Checkpoint() | Verified():
            return _after_file(state, event)
        case Warned(about_images=True):
            return state
        case Warned():
            return replace(state, warnings=tuple(dict.fromkeys((*state.warnings, event.message))))
        case Finished() | Stopped() | Failed():
            return _after_end(state, event)


def _after_file(state: State, event: Preview | Checkpoint | Verified) -> State:
    """Take note of a file; one that was reported before is replaced."""
    match event:
        case Preview():
            previews = [preview for preview in state.previews if preview.file != event.file]
            return replace(state, previews=(*previews, event))
        case Checkpoint():
            checkpoints = [checkpoint for checkpoint in state.checkpoints if checkpoint.step != event.step]
            return replace(state, checkpoints=(*checkpoints, event))
        case Verified():
            verified = [check for check in state.verified if check.file != event.file]
            return replace(state, verified=(*verified, event))


def _after_start(state: State, event: Started) -> State:
    """Clear what an earlier attempt reported, except what lies before the step that the run resumes from."""
    filed = state
    if state.exported > event.step:
        filed = State()
    return State(
        started=True,
        step=event.step,
        steps=event.steps,
        pid=event.pid,
        cards=state.cards,
        device=event.device,
        losses={step: loss for step, loss in state.losses.items() if step <= event.step},
        learning_rates={step: rate for step, rate in state.learning_rates.items() if step <= event.step},
        held_out={step: loss for step, loss in state.held_out.items() if step <= event.step},
        learning_rate=state.learning_rate,
        memory=state.memory,
        seconds=state.seconds,
        previews=tuple(preview for preview in state.previews if preview.step <= event.step),
        checkpoints=tuple(checkpoint for checkpoint in state.checkpoints if checkpoint.step <= event.step),
        warnings=state.warnings,
        export=filed.export,
        exported=filed.exported,
        sha256=filed.sha256,
        verified=filed.verified,
    )


def _after_end(state: State, event: Finished | Stopped | Failed) -> State:
    state = replace(state, end=event.kind, phase=None)
    if isinstance(event, Failed):
        ending = event.model_dump(include={"message", "remedy", "traceback", "template", "change"})
        return replace(state, **ending)
    if isinstance(event, Finished):
        exported = event.step if event.exported is None else event.exported
        state = replace(state, export=event.export, exported=exported, sha256=event.sha256)
    return replace(state, step=event.step)


def loss_curve(state: State, points: int = 500) -> list[tuple[int, float]]:
    """Return at most `points` (step, loss) pairs for a chart, evenly spaced, always with the last one."""
    steps = sorted(state.losses)
    if len(steps) > points:
        stride = -(-len(steps) // points)
        steps = sorted({*steps[::stride], steps[-1]})
    return [(step, state.losses[step]) for step in steps]


def describe_loss(points: Sequence[tuple[int, float]], steps: int) -> str:
    """Describe a loss curve for those who do not see it, from (step, loss) pairs; "" if there are fewer than two."""
    if len(points) < 2:
        return ""
    averages = smooth([loss for _step, loss in points])
    return _(
        "Loss by step: {loss:.3f} at step {step} of {steps}, {first:.3f} at the start",
        loss=averages[-1],
        step=points[-1][0],
        steps=max(steps, points[-1][0]),
        first=averages[0],
    )


def smooth(values: Sequence[float], factor: float = SMOOTHING) -> list[float]:
    """Return the exponential moving average, corrected for the bias of its start (Kingma & Ba 2015, section 3)."""
    average, weight, smoothed = 0.0, 1.0, []
    for value in values:
        average = factor * average + (1 - factor) * value
        weight *= factor
        smoothed.append(average / (1 - weight))
    return smoothed
