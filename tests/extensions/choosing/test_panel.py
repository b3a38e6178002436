"""The panel without a browser: what is chosen counts once, and the winner becomes a file that says its strength."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from limner_extensions.choosing import panel
from limner_extensions.choosing.panel import Choices
from tests.unit.ui.answers import FakeSampler
from trainer import paths
from trainer.adapter_files import safetensors_reader
from trainer.config import PictureConfig
from trainer.errors import UserError
from trainer.runs import Run, checkpoints
from ui.state import adapter_choices
from ui.state.run_watcher import RunWatcher

WEIGHTS = {"lora_unet_x.lora_down.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def choosing(finished: Run) -> tuple[Choices, FakeSampler]:
    """Choices between two checkpoints, of which the first pair is drawn."""
    for file in (finished.export, checkpoints.adapter_file(finished, 5)):
        save_file(WEIGHTS, file, metadata={"ss_network_dim": "2", "sshs_model_hash": "x"})
    choices, sampler = Choices(), FakeSampler()
    panel.begin(sampler, RunWatcher(), choices=choices, key=finished.id)
    return choices, sampler


def choose(choices: Choices, sampler: FakeSampler, side: int | None, seen: str | None = None) -> dict[str, Any]:
    seen = choices.id if seen is None else seen
    return panel.choose(sampler, RunWatcher(), side, choices=choices, seen=seen)


def test_the_better_image_wins_whichever_side_it_is_on(choosing: tuple[Choices, FakeSampler]) -> None:
    """Ten times, the checkpoint at step 5 is the better one; the finished file is the best one so far."""
    choices, sampler = choosing
    sides = set()
    for seed in range(10):
        choices.seed, choices.wins = seed, {}
        is_left = choices.is_swapped
        sides.add(is_left)
        choose(choices, sampler, 0 if is_left else 1)
        assert choices.next.best.key.endswith("@5"), (seed, is_left)
    assert sides == {True, False}, "else it is not blind"


def test_both_images_have_the_same_prompt_and_seed(choosing: tuple[Choices, FakeSampler]) -> None:
    choices, sampler = choosing
    choose(choices, sampler, None)
    made = [(request.prompt, request.seed) for request in sampler.requests]
    assert made[0] == made[1] != made[2]
    assert {request.adapters[0][1] for request in sampler.requests} == {1.0, 0.8}


def test_a_pair_says_nothing_of_what_it_was_made_of(choosing: tuple[Choices, FakeSampler]) -> None:
    choices, sampler = choosing
    html = choose(choices, sampler, None)["result"]
    assert f'data-choice="{choices.id}"' in html
    assert html.count("/media/picture/") == 2
    assert not any(words in html for words in ("0.8", "step", "finished", "strength"))


def test_a_choice_that_failed_is_made_again(finished: Run, choosing: tuple[Choices, FakeSampler]) -> None:
    """As when the run was deleted meanwhile, or when a training run took the memory of the images."""
    choices, sampler = choosing
    before = choices.id
    finished.folder.rename(finished.folder.with_name("moved"))
    with pytest.raises(UserError, match="no longer exists"):
        choose(choices, sampler, 0)
    finished.folder.with_name("moved").rename(finished.folder)
    assert choices.id == before
    assert choose(choices, sampler, 0)


def test_a_pair_that_was_left_for_another_start_is_not_shown(choosing: tuple[Choices, FakeSampler]) -> None:
    choices, _sampler = choosing

    class Restarting(FakeSampler):
        def generate(self, request: PictureConfig) -> Iterator[tuple[int, int]]:
            choices.seed, choices.wins = 1, {}
            return super().generate(request)

    assert choose(choices, Restarting(), 0) == {}
    assert choices.id == "1-0"


def test_choices_that_the_server_lost_are_not_ignored(finished: Run) -> None:
    with pytest.raises(UserError, match="server was restarted"):
        choose(Choices(), FakeSampler(), 0, "7-2")
    with pytest.raises(UserError, match="server was restarted"):
        panel.save(choices=Choices())


@pytest.mark.parametrize("seen", ["", "1-0"])
def test_a_late_click_chooses_nothing(choosing: tuple[Choices, FakeSampler], seen: str) -> None:
    choices, sampler = choosing
    before, made = choices.id, len(sampler.requests)
    assert choose(choices, sampler, 0, seen) == {}
    choose(choices, sampler, 0)
    assert choose(choices, sampler, 0, before) == {}, "of the pair before"
    assert (len(choices.wins), len(sampler.requests)) == (1, made + 2)


def test_the_winner_becomes_a_file_that_says_its_strength(finished: Run, choosing: tuple[Choices, FakeSampler]) -> None:
    choices, sampler = choosing
    assert panel.save(choices=choices) == {}, "there is none yet"
    while isinstance(pair := choices.next, panel.Pair):
        better = pair.other.key.endswith("@5") and pair.other.strength in (1.0, 1.2)
        last = choose(choices, sampler, int(better) if not choices.is_swapped else int(not better))
    assert (pair.key, pair.strength) == (f"{finished.id}@5", 1.2)
    assert "step 5, at strength 1.2" in last["result"]
    answer = panel.save(choices=choices)
    (file,) = adapter_choices.kept()
    assert file.name in answer["result"]
    assert (file.stem, safetensors_reader.read(file).metadata) == (
        "rin-step5",
        {
            "ss_network_dim": "2",
            "ss_output_name": "rin-step5",
            "modelspec.title": "rin-step5",
            "modelspec.usage_hint": "Best at strength 1.2.",
            "modelspec.lora_default_weight": "1.2",
        },
    )
    (weights,) = load_file(file).values()
    assert weights.dtype == np.float16
    np.testing.assert_allclose(weights, *WEIGHTS.values(), atol=1e-3)
    panel.save(choices=choices)
    assert len(adapter_choices.kept()) == 2, "it takes the place of none"
    assert not list(Path(paths.adapters()).glob("*.new"))


def test_an_adapter_from_elsewhere_is_refused(finished: Run) -> None:
    with pytest.raises(UserError, match="no checkpoints to compare"):
        panel.begin(FakeSampler(), RunWatcher(), choices=Choices(), key="")
