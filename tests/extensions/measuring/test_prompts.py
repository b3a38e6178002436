"""Prompts that checkpoints are measured with: near the captions, never one of those that were trained."""

from pathlib import Path

import pytest

from limner_extensions.measuring import prompts
from limner_extensions.measuring.prompts import Prompt
from trainer import config
from trainer.config import TrainConfig
from trainer.data.dataset import Example


def settings(**changes: object) -> TrainConfig:
    return config.build({"name": "rin", "dataset": "rin", "trigger": "rin", **changes})


def example(caption: str, trigger: str = "rin") -> Example:
    return Example(Path(f"{caption or 'none'}.png"), caption, 64, 64, trigger)


TRAINED = [
    example(text) for text in ("smiling, red shirt, indoors", "sad, blue shirt, outdoors", "angry, hat, at night")
]


def called(*arguments: object, **options: object) -> list[str]:
    return [prompt.called for prompt in prompts.choose(*arguments, **options)]  # type: ignore[arg-type]


def test_held_out_captions_come_first_and_short_ones_last() -> None:
    held = [example("laughing, green shirt, indoors")]
    chosen = called(settings(preview={"prompts": ["rin, on the moon --d 7", "without it"]}), TRAINED, held, 12)
    assert chosen[:3] == ["rin, laughing, green shirt, indoors", "rin, on the moon", "rin, sad, hat, indoors"]
    assert chosen[-1] in {f"rin, {short}" for short in prompts.SHORT["character"]}
    assert len(set(chosen)) == 12
    learned = {"rin, smiling, red shirt, indoors", "rin, sad, blue shirt, outdoors", "rin, angry, hat, at night"}
    again = called(settings(preview={"prompts": sorted(learned)}), TRAINED, [TRAINED[0]], 14)
    assert not learned & set(again), "none was trained"


def test_the_plain_prompt_has_the_class_word_or_nothing_for_the_trigger() -> None:
    captions = [example("smiling, indoors"), example("sad, outdoors")]
    assert prompts.choose(settings(), captions, [], 1) == [Prompt("rin, sad, indoors", "sad, indoors")]
    own = settings(class_word="girl")
    assert prompts.choose(own, captions, [], 1) == [Prompt("rin, sad, indoors", "girl, sad, indoors")]
    plain = [example(each.caption, "") for each in TRAINED]
    chosen = prompts.choose(settings(trigger=""), plain, [], 4)
    assert chosen[0] == Prompt("smiling, blue shirt, at night", "smiling, blue shirt, at night")


@pytest.mark.parametrize("preset", ["character", "style", "plain"])
def test_without_captions_there_are_short_ones(preset: str) -> None:
    chosen = prompts.choose(settings(preset=preset), [example("")], [], 8)
    assert [prompt.called for prompt in chosen] == [f"rin, {short}" for short in prompts.SHORT[preset][:8]]
    assert [prompt.plain for prompt in chosen] == list(prompts.SHORT[preset][:8])
