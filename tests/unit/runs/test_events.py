"""The log: torn lines, damaged lines, and a state that does not depend on how it was read."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trainer.runs.events import (
    Began,
    Checkpoint,
    Event,
    Failed,
    Finished,
    Phase,
    Preview,
    Started,
    State,
    Step,
    Stopped,
    Warned,
    append,
    fold,
    loss_curve,
    read,
)


def step(number: int, loss: float = 1.0) -> Step:
    return Step(step=number, loss=loss, learning_rate=1e-3, grad_norm=1.0, seconds=0.1, memory=1)


def started(number: int = 0) -> Started:
    return Started(step=number, steps=100, pid=1, device="CPU")


SOME = st.lists(
    st.one_of(
        st.builds(lambda n: Began(pid=n), st.integers(1, 9)),
        st.builds(started, st.integers(0, 20)),
        st.builds(step, st.integers(1, 30), st.floats(0, 10)),
        st.builds(lambda n: Preview(step=n, file=f"previews/{n}.png", prompt="x", seed=1), st.integers(1, 30)),
        st.builds(lambda n: Checkpoint(step=n, folder=f"checkpoints/{n}"), st.integers(1, 30)),
        st.builds(lambda n: Stopped(step=n), st.integers(0, 30)),
        st.just(Finished(step=30, export="x.safetensors")),
        st.just(Failed(message="m", remedy="r", traceback="t")),
        st.just(Phase(name="p", done=1, total=2)),
        st.just(Warned(message="w")),
    ),
    max_size=40,
)


@given(SOME, st.integers(0, 40))
def test_folding_in_pieces_is_folding_in_one_go(log: list[Event], cut: int) -> None:
    whole = fold(State(), log)
    assert fold(fold(State(), log[:cut]), log[cut:]) == whole


@given(SOME)
def test_folding_leaves_the_old_state_alone(log: list[Event]) -> None:
    before = fold(State(), [started(), step(1)])
    losses = dict(before.losses)
    fold(before, log)
    assert before.losses == losses


def test_steps_repeated_after_a_resume_replace_the_old_ones() -> None:
    state = fold(State(), [started(), step(1, 5.0), step(2, 6.0), step(3, 7.0), started(1), step(2, 8.0)])
    assert state.losses == {1: 5.0, 2: 8.0}
    assert state.step == 2


def test_a_resume_ends_the_last_end() -> None:
    assert fold(State(), [started(), Failed(message="m", remedy="r", traceback="")]).end == "failed"
    assert fold(State(), [started(), Failed(message="m", remedy="r", traceback=""), started(3)]).end == ""


def test_every_event_survives_its_line(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    written: list[Event] = [
        started(), Phase(name="a\nb", done=0, total=1), step(1, float("nan")), Warned(message="<script>"),
        Preview(step=1, file="f", prompt="p", seed=1), Checkpoint(step=1, folder="f"), Stopped(step=1),
        Failed(message="m", remedy="r", traceback="a\nb"), Finished(step=1, export="x"),
    ]  # fmt: skip
    for event in written:
        append(log, event)
    got, offset = read(log)
    assert [event.model_dump_json() for event in got] == [event.model_dump_json() for event in written]
    assert offset == log.stat().st_size
    assert read(log, offset) == ([], offset)


def test_a_torn_line_is_ignored_and_then_cut(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    append(log, step(1))
    with log.open("ab") as file:
        file.write(b'{"kind":"step","st')
    got, offset = read(log)
    assert len(got) == 1
    append(log, step(2))
    assert [event.step for event in read(log)[0]] == [1, 2]  # type: ignore[union-attr]
    assert len(read(log, offset)[0]) == 1


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    append(log, step(1))
    with log.open("ab") as file:
        file.write(b'\x00\xff\n{"kind":"nonsense"}\n[]\n')
    append(log, step(2))
    assert len(read(log)[0]) == 2


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "absent") == ([], 0)


def test_a_curve_keeps_its_last_point() -> None:
    state = fold(State(), [started(), *(step(number, number / 10) for number in range(1, 1235))])
    points = loss_curve(state, 100)
    assert len(points) <= 101
    assert points[-1] == (1234, 123.4)
    assert loss_curve(State()) == []
