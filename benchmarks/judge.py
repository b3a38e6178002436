"""The judge: a small CNN that names the attributes of a portrait of the micro world. Not part of the product.

It is trained on rendered portraits of other seeds than the base model's, never on generated pictures, so it cannot
learn a generator's faults as features. It always chooses a known class, even for a blur, so its figures are read beside
two bounds: its own score on renders (ceiling) and its score against shuffled captions (floor).

    node scripts/pretrain_micro/draw_world.mjs FOLDER/train 128 14000 0 9001
    node scripts/pretrain_micro/draw_world.mjs FOLDER/test 128 2400 0 7003
    node scripts/pretrain_micro/draw_examples.mjs FOLDER/subjects all
    python -m benchmarks.judge FOLDER              # trains FOLDER/judge.safetensors and prints its ceiling
"""

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from scripts.pretrain_micro.pictures import Attributes, Pictures, read_pictures

SIZE = 96
HEADS: dict[str, tuple[str, ...]] = {
    "style": (
        "lorelei", "adventurer", "openPeeps", "micah", "personas", "toonHead", "pixelArt", "bigSmile", "dylan",
    ),
    "hair": (
        "short", "curly", "spiky", "bob", "long", "bun", "two buns", "ponytail", "mohawk", "flowers", "pigtails",
        "braid",
        "afro", "flat top", "bald", "beanie", "hat", "hijab", "turban",
    ),
    "hairColor": ("black", "brown", "blond", "red", "orange", "gray", "white", "blue", "green", "pink", "purple"),
    "skin": ("pale", "tan", "brown", "dark", "blue"),
    "glasses": ("none", "glasses", "sunglasses"),
    "beard": ("none", "beard", "moustache", "goatee"),
    "background": (
        "white", "gray", "black", "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "beige",
    ),
    "shirt": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white", "gray"),
    "expression": ("smiling", "laughing", "sad", "angry", "surprised", "neutral"),
}  # fmt: skip
UNKNOWN = -100  # the label that cross_entropy ignores


class Judge(nn.Module):
    """Maps images [b, 3, H, W] in -1..1 to logits for each head, through an embedding of 192 numbers."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 48, 96, 144, 192)
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [
                nn.Conv2d(before, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, groups=1 if width < 144 else 4), nn.BatchNorm2d(width), nn.ReLU(),
            ]  # fmt: skip
            before = width
        self.body = nn.Sequential(*layers)
        self.neck = nn.Linear(192 * 9, 192)  # positions matter: they distinguish a moustache from a goatee
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(words)) for name, words in HEADS.items()})

    def embed(self, pictures: Tensor) -> Tensor:
        """Return the embeddings [b, 192] of images."""
        resized = functional.interpolate(pictures, (SIZE, SIZE), mode="area")
        hidden: Tensor = self.neck(self.body(resized).flatten(1))
        return functional.relu(hidden)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the logits by head."""
        embedding = self.embed(pictures)
        return {name: head(embedding) for name, head in self.heads.items()}

    @torch.no_grad()
    def name(self, pictures: Tensor) -> list[Attributes]:
        """The most likely word of each head for each picture."""
        self.eval()
        chosen = {name: logits.argmax(1).tolist() for name, logits in self(pictures).items()}
        return [{name: HEADS[name][chosen[name][row]] for name in HEADS} for row in range(len(pictures))]


def labels(attributes: list[Attributes]) -> dict[str, Tensor]:
    """Return class numbers by head, `UNKNOWN` where an attribute is not known."""
    return {
        name: torch.tensor([_label(name, words, person) for person in attributes]) for name, words in HEADS.items()
    }  # fmt: skip


def _label(name: str, words: tuple[str, ...], attributes: Attributes) -> int:
    if name in ("glasses", "beard") and name in attributes:
        return words.index(attributes[name] or "none")
    word: Any = attributes.get(name)
    return words.index(word) if word in words else UNKNOWN


def train(folder: Path, steps: int, seed: int = 0) -> Judge:
    """Train on FOLDER/train.

    Each image is shifted, scaled, blurred and tinted a little, so that images of another sharpness, such as a
    generator's, are still recognized.
    """
    torch.manual_seed(seed)
    world, strange = (read_pictures(folder / "train", name, 128) for name in ("world", "held_out"))
    judge, rng = Judge(), random.Random(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    start = time.monotonic()
    for step in range(steps):
        pictures, attributes = _batch(world, strange, rng)
        truth = labels(attributes)
        judge.train()
        loss = torch.stack(
            [
                functional.cross_entropy(logits, truth[name], label_smoothing=0.05)
                for name, logits in judge(_augment(pictures)).items()
                if (truth[name] != UNKNOWN).any()
            ]
        ).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            seconds = time.monotonic() - start
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {seconds:.0f} s", file=sys.stderr)
    return judge.eval()


def _batch(world: Pictures, strange: Pictures, rng: random.Random) -> tuple[Tensor, list[Attributes]]:
    many, few = rng.sample(range(len(world)), 56), rng.sample(range(len(strange)), 8)
    pictures = torch.cat([world.tensor(many), strange.tensor(few)])
    return pictures, [world.attributes[index] for index in many] + [strange.attributes[index] for index in few]


def _augment(pictures: Tensor) -> Tensor:
    count = len(pictures)
    transform = torch.zeros(count, 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = 1 + 0.06 * torch.randn(count)
    transform[:, :, 2] = 0.04 * torch.randn(count, 2)
    grid = functional.affine_grid(transform, list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    soft = functional.interpolate(
        functional.interpolate(moved, scale_factor=0.25 + 0.5 * torch.rand(()).item(), mode="area"), moved.shape[-2:]
    )
    blurred = (torch.rand(count, 1, 1, 1) < 0.5).float()
    mixed = blurred * soft + (1 - blurred) * moved
    return mixed * (1 + 0.05 * torch.randn(count, 3, 1, 1)) + 0.04 * torch.randn(count, 3, 1, 1)


def matches(judge: Judge, pictures: Tensor, truth: list[Attributes]) -> list[dict[str, bool]]:
    """Tell for each image and each head whose truth is known whether the judge sees it."""
    labeled = [{name: _label(name, words, person) for name, words in HEADS.items()} for person in truth]
    return [
        {name: seen[name] == HEADS[name][label] for name, label in known.items() if label >= 0}
        for seen, known in zip(judge.name(pictures), labeled, strict=True)
    ]


def agreement(judge: Judge, pictures: Tensor, truth: list[Attributes]) -> dict[str, float]:
    """Return the share of images in which the judge sees what is true, for each head whose truth is known."""
    results = matches(judge, pictures, truth)
    known = {name: [result[name] for result in results if name in result] for name in HEADS}
    return {name: sum(right) / len(right) for name, right in known.items() if right}


def ceiling(judge: Judge, folder: Path) -> dict[str, float]:
    """Return the judge's score on renders of its test set: 2,400 of the world, 300 of the held-out styles."""
    world, strange = (read_pictures(folder / "test", name, 128) for name in ("world", "held_out"))
    scores = agreement(judge, world.tensor(slice(None)), world.attributes)
    scores["held-out style"] = agreement(judge, strange.tensor(slice(None)), strange.attributes)["style"]
    return scores


class Recognizer:
    """Distinguishes the held-out characters from each other and from everyone else, by the judge's embedding.

    Two layers on the frozen embedding, trained on half of the renders of the characters and of the world.
    """

    NOBODY = "nobody"

    def __init__(self, judge: Judge, folder: Path) -> None:
        torch.manual_seed(0)
        known, world = (
            read_pictures(folder / "subjects", "characters", 128),
            read_pictures(folder / "test", "world", 128),
        )
        self.judge, names = judge, [person["character"] for person in known.attributes]
        self.words = (self.NOBODY, *dict.fromkeys(names))
        features = torch.cat([self._embed(known.tensor(slice(None))), self._embed(world.tensor(slice(None)))])
        truth = torch.tensor([self.words.index(name) for name in names] + [0] * len(world))
        order = torch.randperm(len(truth))  # the world's styles come in turn, so every other picture lacks half of them
        features, truth = features[order], truth[order]
        self.layer = nn.Sequential(nn.Linear(features.shape[1], 128), nn.ReLU(), nn.Linear(128, len(self.words)))
        optimizer = torch.optim.AdamW(self.layer.parameters(), 3e-3, weight_decay=0.05)
        for _ in range(400):
            loss = functional.cross_entropy(self.layer(features[::2]), truth[::2])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        right = self.layer(features[1::2]).argmax(1) == truth[1::2]
        known_half = truth[1::2] > 0
        self.accuracy = right[known_half].float().mean().item(), right[~known_half].float().mean().item()

    @torch.no_grad()
    def _embed(self, pictures: Tensor) -> Tensor:
        self.judge.eval()
        return torch.cat([self.judge.embed(part) for part in torch.split(pictures, 64)])

    def name(self, pictures: Tensor) -> list[str]:
        """Name the character in each image, or "nobody"."""
        return [self.words[number] for number in self.layer(self._embed(pictures)).argmax(1).tolist()]


def load(folder: Path) -> Judge:
    """Load a trained judge."""
    judge = Judge()
    judge.load_state_dict(load_file(folder / "judge.safetensors"))
    return judge.eval()


def main() -> None:
    """Train a judge and print its ceiling."""
    parser = argparse.ArgumentParser(description="Train the judge of the micro world.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    judge = train(parsed.folder, parsed.steps)
    save_file(judge.state_dict(), parsed.folder / "judge.safetensors")
    for name, share in ceiling(judge, parsed.folder).items():
        print(f"{name:16} {share:.3f}")


if __name__ == "__main__":
    main()
