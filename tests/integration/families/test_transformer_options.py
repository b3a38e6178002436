"""Each option of a run on the families with a transformer: it goes on after a stop bit for bit, or is refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.families.test_families import SMALL
from tests.integration.training.test_train import OPTIONS, finish, is_third, losses, same, settings
from trainer import runs
from trainer.errors import UserError
from trainer.runs import Run
from trainer.train import train

REFUSED = {
    "min-SNR": "weights noise levels by how often",
    "debiased, Huber": "weights noise levels by how often",
    "P2, scheduled Huber": "weights noise levels by how often",
    "noise": "trained from pure noise",
    "LoCon with dropouts": "has no convolutions",
    "DoRA": "has no convolutions",
    "LoHa": "has no convolutions",
    "LoKr": "has no convolutions",
}
INSTEAD: dict[str, dict[str, Any]] = {
    "ranks of blocks": {"adapter__ranks": ["transformer_blocks.1 = 8", "to_q = 2"]},
    "attention of the up blocks": {"adapter__targets": "attention", "adapter__blocks": ["transformer_blocks.1"]},
    "debiased, Huber": {"objective__loss_type": "huber"},
    "P2, scheduled Huber": {"objective__loss_type": "scheduled-huber"},
    "noise": {"objective__input_perturbation": 0.1},
    "LoCon with dropouts": {"adapter__dropout": 0.2, "adapter__rank_dropout": 0.3},
    "DoRA": {"adapter__dora": True, "preview__every": 2},
    "LoHa": {"adapter__kind": "loha", "adapter__rank_dropout": 0.2},
    "LoKr": {"adapter__kind": "lokr", "adapter__rank": 2, "training__text_encoder": True},
}


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name in INSTEAD or name not in REFUSED])
def test_six_steps_are_three_and_three_with_each_option(
    character: Path, bases: dict[str, Path], kind: str, name: str
) -> None:
    options = SMALL.get(kind, {}) | INSTEAD.get(name, OPTIONS[name])
    whole, parts = (runs.create(settings(bases[kind], **options)) for _ in range(2))
    expected = finish(whole)
    train(parts.config(), Run(parts.folder, lambda event: runs.request(parts, "stop") if is_third(event) else None))
    assert runs.look(parts).state.step == 3
    assert same(finish(parts), expected)
    assert losses(parts) == losses(whole)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_makes_no_sense_is_refused(bases: dict[str, Path], kind: str, name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]):
        settings(bases[kind], **OPTIONS[name])
