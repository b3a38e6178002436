"""The parts of a recipe against values worked out by hand."""

import math
import sys

import pytest
import torch

from trainer.errors import UserError
from trainer.lion import Lion
from trainer.optimizers import AdamW8bit, Prodigy, ScheduleFree
from trainer.schedules import Constant, Cosine, Linear, Stable


def test_schedules_by_hand() -> None:
    constant = Constant(warmup=0.1)
    assert [constant.factor(step, 40) for step in (0, 1, 3, 39)] == [0.25, 0.5, 1.0, 1.0]
    linear = Linear(warmup=0, floor=0.2)
    assert [linear.factor(step, 10) for step in (0, 5)] == pytest.approx([1.0, 0.6])
    cosine = Cosine(warmup=0, floor=0.1)
    assert [cosine.factor(step, 100) for step in (0, 50)] == pytest.approx([1.0, 0.55])
    assert cosine.factor(99, 100) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))
    restarts = Cosine(warmup=0, floor=0, cycles=2)
    assert [restarts.factor(step, 8) for step in (0, 2, 4, 6)] == pytest.approx([1.0, 0.5, 1.0, 0.5])
    stable = Stable(warmup=0, floor=0, cooldown=0.2)
    assert [stable.factor(step, 20) for step in (0, 15, 16, 17, 19)] == pytest.approx([1, 1, 1, 0.75, 0.25])


def test_a_cool_down_that_begins_early() -> None:
    stable = Stable(warmup=0, floor=0, cooldown=0.2)
    assert stable.shortened(40, 1000) == 50
    assert stable.factor(40, 50) == 1.0
    assert stable.factor(41, 50) == pytest.approx(0.9)
    assert stable.shortened(900, 1000) == 1000


def test_a_lion_step_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    lion = Lion([{"params": [weight]}], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    weight.grad = torch.tensor([0.3, -0.1, 0.0])
    lion.step()
    assert torch.allclose(weight, torch.tensor([0.95 - 0.1, -1.9 + 0.1, 2.85]))
    assert torch.allclose(lion.state[weight]["average"], torch.tensor([0.003, -0.001, 0.0]))
    # The average of before outweighs a small gradient of the other sign: 0.9 * 0.003 - 0.1 * 0.02 > 0.
    before = weight.detach().clone()
    weight.grad = torch.tensor([-0.02, 0.0, 0.0])
    lion.step()
    assert float(weight.detach()[0]) == pytest.approx(float(before[0]) * 0.95 - 0.1)


@pytest.mark.parametrize(
    ("optimizer", "package"),
    [(AdamW8bit(), "bitsandbytes"), (Prodigy(), "prodigyopt"), (ScheduleFree(), "schedulefree")],
)
def test_an_optimizer_whose_package_is_absent(
    optimizer: AdamW8bit | Prodigy | ScheduleFree, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # how Python itself says that there is no such module
    with pytest.raises(UserError, match="not installed") as caught:
        optimizer.build([])
    assert "pip install" in caught.value.remedy
