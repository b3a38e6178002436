"""What a run that failed would do better with."""

import json

import pytest

from trainer import config
from trainer.config import adjustments

FURTHER = (([512], 768, None), ([896, 512], 768, [512]), ([768], 768, []), ([704, 640], 768, None))


@pytest.mark.parametrize(
    ("side", "further", "lower", "kept"),
    [(512, [], 384, None), (320, [], 256, None), (256, [], None, None), *((1024, *more) for more in FURTHER)],
)
def test_what_does_not_fit_is_made_smaller(
    side: int, further: list[int], lower: int | None, kept: list[int] | None
) -> None:
    training = {"resolution": side, "further_resolutions": further}
    data = {"name": "x", "dataset": "x", "model": {"base": "a/b"}, "training": training}
    change = adjustments.lower_resolution(config.build(data))
    expected = {"training.resolution": lower, "training.further_resolutions": kept}
    assert change == {path: value for path, value in expected.items() if value is not None}
    changed = config.override(data, [f"{path}={json.dumps(value)}" for path, value in change.items()])
    assert config.build(changed).training.resolution == (lower or side)


def test_micro_stays_and_what_is_unstable_is_made_calmer() -> None:
    settings = config.build({"name": "x", "dataset": "x", "optimizer": {"learning_rate": 0.003}})
    assert adjustments.lower_resolution(settings) == {}
    assert adjustments.lower_learning_rate(settings) == {"optimizer.learning_rate": 0.00075}
