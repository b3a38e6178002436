"""Flags at the end of preview prompts, with the values that sd-scripts gives them."""

import pytest

from trainer import config
from trainer.config import prompt_lines
from trainer.errors import UserError


def test_flags_are_read_and_the_rest_is_the_prompt() -> None:
    text = "a fox, red -- or not --w 515 --h 768 --d 42 --n blurry, low --l 7 --s 20 --strength 0.8"
    line = prompt_lines.parse_prompt_line(text)
    assert line.prompt == "a fox, red -- or not"
    expected = {"width": 512, "height": 768, "seed": 42, "negative": "blurry, low", "guidance": 7.0, "steps": 20}
    assert line.settings == expected
    assert prompt_lines.without_flags("--odd caption --w 3") == "caption  3"
    assert line.strength == 0.8
    assert prompt_lines.parse_prompt_line("a well-known fox") == prompt_lines.PromptLine("a well-known fox", {})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--x 3", "unknown flag --x. Known are --w, --h, --d"),
        ("--w wide", "'wide' is no value for --w"),
        ("--n", "'' is no value for --n"),
        ("--s 0", "'0' is no value for --s"),
        ("--l nan", "'nan' is no value for --l"),
        ("--strength 3", "'3.0' is no value for --strength"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_a_sentence(flags: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        prompt_lines.parse_prompt_line(f"a fox {flags}")
    assert words in str(error.value)
    data = {"name": "x", "dataset": "x", "preview": {"prompts": ["a fox", f"a fox {flags}"]}}
    with pytest.raises(UserError, match=r"preview\.prompts"):
        config.build(data)
