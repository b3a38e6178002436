"""Prompts that checkpoints are measured with: near the captions of the dataset, but none that was trained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from trainer.config import TrainConfig, prompt_lines
from trainer.data.captions import contains_trigger, of_class, with_trigger
from trainer.data.dataset import Example
from trainer.training.inputs import augment

# For datasets without captions, or with such as cannot be varied.
SHORT = {
    "character": "white background, outdoors, close-up, black background, from the side, at night, indoors, "
    "in the rain, blue background, at the beach, in a forest, on a street",
    "style": "a person, a house, a dog, a tree, a boat, a street, a mountain, a cup, a cat, a flower, a car, a bridge",
}
SHORT["plain"] = SHORT["character"]  # which is what most people teach


@dataclass(frozen=True)
class Prompt:
    """A prompt with the trigger, and the same without it: with the class word in its place, if there is one."""

    called: str
    plain: str


def choose(config: TrainConfig, trained: Sequence[Example], held: Sequence[Example], count: int) -> list[Prompt]:
    """Return so many prompts for the subject of some examples; fewer only if there is no trigger word to add.

    Held-out captions come first, then the preview prompts, then captions that are made of parts of several, then short
    ones. None is a caption that was trained: with it, an image learned by heart would look like a subject learned.
    """
    trigger = trained[0].trigger
    learned = [augment.caption_variants(example, config)[0] for example in trained]
    sources = chain(
        (augment.caption_variants(example, config)[0] for example in held),
        (line for line in map(_prompt, config.preview.prompts) if not trigger or contains_trigger(line, trigger)),
        _recombined(learned),
        (with_trigger(text, trigger) for text in SHORT[config.preset].split(", ")),
    )
    chosen: dict[str, Prompt] = {}
    for text in sources:
        called = prompt_lines.without_flags(text)
        if called and called not in learned and called not in chosen:
            chosen[called] = Prompt(called, of_class(called, config.class_words))
        if len(chosen) == count:
            break
    return list(chosen.values())


def _prompt(line: str) -> str:
    return prompt_lines.parse_prompt_line(line).prompt


def _recombined(captions: Sequence[str]) -> Iterator[str]:
    """Yield captions whose comma-separated parts come from different ones, each in the place that it had."""
    split = [[part.strip() for part in caption.split(",")] for caption in dict.fromkeys(captions)]
    rows = [row for row in split if len(row) > 1]
    for shift in range(1, len(rows)):
        for start, row in enumerate(rows):
            others = [rows[(start + shift * place) % len(rows)] for place in range(len(row))]
            parts = [other[place] if place < len(other) else row[place] for place, other in enumerate(others)]
            yield ", ".join(dict.fromkeys(filter(None, parts)))
