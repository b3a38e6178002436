"""What a run that failed would do better with."""

import json

import pytest

from trainer import config
from trainer.config import adjustments


@pytest.mark.parametrize(("side", "lower"), [(1024, 768), (512, 384), (320, 256), (256, None)])
def test_what_does_not_fit_is_made_smaller(side: int, lower: int | None) -> None:
    settings = config.build({"name": "x", "dataset": "x", "model": {"base": "a/b"}, "training": {"resolution": side}})
    assert adjustments.lower_resolution(settings) == ({"training.resolution": lower} if lower else {})


@pytest.mark.parametrize(
    ("further", "kept"), [([512], None), ([896, 512], [512]), ([768], []), ([704, 640], None)]
)  # fmt: skip
def test_further_resolutions_stay_below_it(further: list[int], kept: list[int] | None) -> None:
    training = {"resolution": 1024, "further_resolutions": further}
    data = {"name": "x", "dataset": "x", "model": {"base": "a/b"}, "training": training}
    change = adjustments.lower_resolution(config.build(data))
    assert change == {"training.resolution": 768} | ({} if kept is None else {"training.further_resolutions": kept})
    changed = config.override(data, [f"{path}={json.dumps(value)}" for path, value in change.items()])
    assert config.build(changed).training.resolution == 768


def test_micro_stays_and_what_is_unstable_is_made_calmer() -> None:
    settings = config.build({"name": "x", "dataset": "x", "optimizer": {"learning_rate": 0.003}})
    assert adjustments.lower_resolution(settings) == {}
    assert adjustments.lower_learning_rate(settings) == {"optimizer.learning_rate": 0.00075}
