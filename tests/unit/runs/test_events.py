"""The log: torn lines, damaged lines, and a state that does not depend on how it was read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.runs import events
from trainer.runs.events import Event, State, Step, append, fold, loss_curve, read


def step(number: int, loss: float = 1.0) -> Step:
    return Step(step=number, loss=loss, learning_rate=1e-3, grad_norm=1.0, seconds=0.1, memory=1)


def started(number: int = 0) -> events.Started:
    return events.Started(step=number, steps=100, pid=1, device="CPU")


SOME = st.lists(
    st.one_of(
        st.builds(lambda n: events.Began(pid=n), st.integers(1, 9)),
        st.builds(started, st.integers(0, 20)),
        st.builds(step, st.integers(1, 30), st.floats(0, 10)),
        st.builds(lambda n: events.Preview(step=n, file=f"previews/{n}.png", prompt="x", seed=1), st.integers(1, 30)),
        st.builds(lambda n: events.Checkpoint(step=n, folder=f"checkpoints/{n}"), st.integers(1, 30)),
        st.builds(lambda n: events.Stopped(step=n), st.integers(0, 30)),
        st.just(events.Finished(step=30, export="x.safetensors")),
        st.just(events.Failed(message="m", remedy="r", traceback="t")),
        st.just(events.Phase(name="p", done=1, total=2)),
        st.just(events.Warned(message="w")),
        st.just(events.Warned(message="i", about_images=True)),
    ),
    max_size=40,
)


def test_a_log_that_cannot_be_read_has_no_events(tmp_path: Path) -> None:
    assert read(tmp_path, 7) == ([], 7), "here it is a folder; it may also be of another user"
    assert read(tmp_path / "none", 7) == ([], 0)


@given(SOME, st.integers(0, 40))
def test_folding_in_pieces_is_folding_in_one_go(log: list[Event], cut: int) -> None:
    whole, first = fold(State(), log), fold(State(), log[:cut])
    losses = dict(first.losses)
    assert fold(first, log[cut:]) == whole
    assert first.losses == losses, "the old state is left alone"


def test_a_resume_takes_back_what_came_after_its_step() -> None:
    before: list[Event] = [started(), *(step(number, 5.0 + number) for number in (1, 2, 3, 4))]
    for number in (1, 2, 3):
        before.append(events.Preview(step=number, file=f"previews/{number}.png", prompt="x", seed=1))
        before.append(events.Checkpoint(step=number, folder=f"checkpoints/{number}"))
    state = fold(State(), [*before, started(2), step(3, 1.0)])
    assert (state.step, state.losses) == (3, {1: 6.0, 2: 7.0, 3: 1.0})
    assert [preview.step for preview in state.previews] == [1, 2]
    assert [checkpoint.step for checkpoint in state.checkpoints] == [1, 2]


@pytest.mark.parametrize(("resumed", "kept"), [(3, "x.safetensors"), (2, "")])
def test_a_finished_file_stays_while_its_run_goes_on(resumed: int, kept: str) -> None:
    """Until it is written again; from an earlier step, the run goes another way."""
    verified = events.Verified(file="x.safetensors", verdicts=[("diffusers", True, "")], problems=[], notes=[])
    finished = events.Finished(step=3, export="x.safetensors", sha256={"x.safetensors": "0"})
    state = fold(State(), [started(), step(3), finished, verified, started(resumed), step(resumed + 1)])
    assert (state.export, bool(state.sha256), len(state.verified)) == (kept, bool(kept), bool(kept))
    assert state.exported == (3 if kept else 0)


def test_a_curve_keeps_its_last_point() -> None:
    state = fold(State(), [started(), *(step(number, number / 10) for number in range(1, 1235))])
    points = loss_curve(state, 100)
    assert (len(points) <= 101, points[-1]) == (True, (1234, 123.4))
    assert loss_curve(State()) == []


def test_a_torn_line_is_cut_and_a_damaged_one_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    append(log, step(1))
    with log.open("ab") as file:
        file.write(b'{"kind":"step","st')
    complete, offset = read(log)
    assert len(complete) == 1
    append(log, step(2))
    assert len(read(log, offset)[0]) == 1
    with log.open("ab") as file:
        file.write(b'\x00\xff\n{"kind":"nonsense"}\n[]\n')
    append(log, step(3))
    assert [event.step for event in read(log)[0]] == [1, 2, 3]
    assert read(tmp_path / "absent") == ([], 0)
