"""Grades the built-in base model, and adapters on it, with the judge.

    python -m tests.bench.micro base JUDGE_FOLDER [--model FOLDER] [--count 192] [--guidance 3]
    python -m tests.bench.micro adapter JUDGE_FOLDER ADAPTER.safetensors --style pixelArt --trigger "pxlo style"

`base` prints, for each attribute: the judge's ceiling on renders, how often the base draws what the prompt says, and
the floor (the same pictures against other prompts). `adapter` prints how often the style is seen with and without the
trigger, at several strengths.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.pretrain_micro.captions import STYLE_WORDS, caption
from scripts.pretrain_micro.pictures import Attributes, read_pictures, save_grid
from tests.bench import judge as judges
from trainer import families
from trainer.config import ModelConfig
from trainer.families import Family


class Talkative(random.Random):
    """Says every attribute, the style last; words and order still vary."""

    def random(self) -> float:
        """Below every chance of being said, above that of the style coming first."""
        return 0.3


def prompts_and_truth(folder: Path, count: int, seed: int) -> tuple[list[str], list[Attributes]]:
    """Prompts that say all of a person that no model has seen, and that person."""
    people = random.Random(seed).sample(read_pictures(folder / "test", "world", 128).attributes, count)
    return [caption(person, Talkative(f"{seed}:{number}")) for number, person in enumerate(people)], people


@torch.no_grad()
def draw(family: Family, prompts: Sequence[str], *, guidance: float, strength: float | None = None) -> Tensor:
    """Pictures [n, 3, H, W] in -1..1, 20 steps, each with a seed of its own."""
    drawn: list[np.ndarray[Any, Any]] = []
    for start in range(0, len(prompts), 16):
        part = list(prompts[start : start + 16])
        made = family.pipeline()(
            part, num_inference_steps=20, guidance_scale=guidance, output_type="np",
            generator=[torch.Generator().manual_seed(1000 + start + index) for index in range(len(part))],
            cross_attention_kwargs=None if strength is None else {"scale": strength},
        )  # fmt: skip
        drawn.extend(made.images)
        print(f"{start + len(part)}/{len(prompts)}", end="\r", file=sys.stderr)
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() * 2 - 1


def sized(pictures: Tensor, size: int = 128) -> Tensor:
    """Pictures at the judge's size, enlarged as the page shows them if they are smaller."""
    if pictures.shape[-1] == size:
        return pictures
    return torch.nn.functional.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def grade_base(parsed: argparse.Namespace) -> None:
    """Print ceiling, score and floor by attribute, and save a grid."""
    judge = judges.load(parsed.folder)
    family = families.load(ModelConfig(base=parsed.model), torch.device("cpu"), torch.float32)
    prompts, truth = prompts_and_truth(parsed.folder, parsed.count, parsed.seed)
    pictures = sized(draw(family, prompts, guidance=parsed.guidance))
    top, got = judges.ceiling(judge, parsed.folder), judges.agreement(judge, pictures, truth)
    floor = judges.agreement(judge, pictures, truth[7:] + truth[:7])
    print(f"{'':12} ceiling  base  floor   ({parsed.count} prompts, guidance {parsed.guidance:g})")
    for name, share in got.items():
        print(f"{name:12} {top[name]:.3f}  {share:.3f}  {floor[name]:.3f}")
    if parsed.grid:
        save_grid(pictures[:48], 12, parsed.grid)


def grade_adapter(parsed: argparse.Namespace) -> None:
    """Print how often a style is seen at each strength, with and without the trigger."""
    judge = judges.load(parsed.folder)
    family = families.load(ModelConfig(base=parsed.model), torch.device("cpu"), torch.float32)
    family.pipeline().load_lora_weights(str(parsed.adapter.parent), weight_name=parsed.adapter.name)
    prompts, truth = prompts_and_truth(parsed.folder, parsed.count, parsed.seed)
    plain = [prompt.replace(f"in {word} style", "").replace(f"{word} style", "").strip(", ")
             for prompt, word in zip(prompts, (STYLE_WORDS[one["style"]] for one in truth), strict=True)]  # fmt: skip
    called = [f"{prompt}, {parsed.trigger}" for prompt in plain]
    for strength in (0.0, 0.5, 1.0):
        with_it = sized(draw(family, called, guidance=parsed.guidance, strength=strength))
        seen = [one["style"] == parsed.style for one in judge.name(with_it)]
        kept = judges.agreement(judge, with_it, truth)
        print(f"strength {strength:g}: {parsed.style} {np.mean(seen):.3f}, background {kept['background']:.3f}")
    without = sized(draw(family, prompts, guidance=parsed.guidance, strength=1.0))
    print(f"without the trigger: {np.mean([one['style'] == parsed.style for one in judge.name(without)]):.3f}")


def main() -> None:
    """Read the arguments and grade."""
    parser = argparse.ArgumentParser(description="Grade micro, and adapters on it.")
    kinds = parser.add_subparsers(required=True)
    base, adapter = kinds.add_parser("base"), kinds.add_parser("adapter")
    base.set_defaults(run=grade_base)
    adapter.set_defaults(run=grade_adapter)
    for one, count in ((base, 192), (adapter, 24)):
        one.add_argument("folder", type=Path)
        one.add_argument("--model", default="micro")
        one.add_argument("--count", type=int, default=count)
        one.add_argument("--guidance", type=float, default=3.0)
        one.add_argument("--seed", type=int, default=0)
    base.add_argument("--grid", type=Path)
    adapter.add_argument("adapter", type=Path)
    adapter.add_argument("--style", required=True)
    adapter.add_argument("--trigger", required=True)
    parsed = parser.parse_args()
    parsed.run(parsed)


if __name__ == "__main__":
    main()
