"""Batches: images, their views and their captions for each step. All follows from seed and step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import TrainConfig
from trainer.data import dataset
from trainer.families import Conditioning
from trainer.rng import generator
from trainer.training.tensor_cache import Shelf

LOOKED_AT = 100  # batches among which the largest is looked for


@dataclass(frozen=True)
class Batch:
    """The inputs of one pass: latents' mean and standard deviation [b, c, h, w], conditioning, captions.

    `preserved` are prompts under which the adapter has to predict what the base predicts, about `preserved_latents`
    [k, c, h, w]: pictures that the base drew from them, or the batch's own with their trigger taken out; their
    conditioning is the base's. That of the captions is None where they must be encoded in the step, because the text
    encoder is trained. `mask` [b, 1, h, w] in 0..1 says where to learn, None is everywhere; `weight` is the batch's in
    the loss. `sizes` [b, 6] is part of any conditioning: original height and width, top and left of the crop, height
    and width.

    A batch may be a part of a larger one of `whole` pictures: those at `rows` there.
    """

    mean: Tensor
    std: Tensor
    conditioning: Conditioning | None
    captions: tuple[str, ...]
    whole: int
    preserved: tuple[str, ...] = ()
    preserved_conditioning: Conditioning | None = None
    mask: Tensor | None = None
    weight: float = 1.0
    sizes: Tensor | None = None
    preserved_latents: Tensor | None = None
    rows: slice = field(default_factory=lambda: slice(None))

    def part(self, number: int, of: int) -> "Batch":
        """Every `of`-th picture from the `number`-th on: what one of `of` parts computes.

        The preserved pictures go with the first of the batch, so that they are shared out in the same way.
        """
        if of == 1:
            return self
        rows = slice(number, None, of)
        parts: dict[str, Tensor | None] = {
            name: None if tensor is None else tensor[rows]
            for name, tensor in vars(self).items()
            if name in ("mean", "std", "mask", "sizes", "preserved_latents")
        }
        texts = {name: _rows(getattr(self, name), rows) for name in ("conditioning", "preserved_conditioning")}
        return replace(self, captions=self.captions[rows], preserved=self.preserved[rows], rows=rows, **parts, **texts)  # type: ignore[arg-type]


def _rows(conditioning: Conditioning | None, rows: slice) -> Conditioning | None:
    return None if conditioning is None else {key: tensor[rows] for key, tensor in conditioning.items()}


@dataclass(frozen=True)
class Pool:
    """Pictures that are drawn from together, in epochs; of each its views, its size, its texts, and each view's place.

    A place is what `Batch.sizes` says of one picture.
    """

    views: list[tuple[Path, ...]]
    sizes: list[tuple[int, ...]]
    texts: list[tuple[str, ...]]
    seed: int
    batch_size: int
    name: str = ""
    places: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    _plan: dict[int, list[list[int]]] = field(default_factory=dict, compare=False)

    def indices(self, number: int) -> list[int]:
        """Examples of the `number`-th batch. In an epoch each comes once; examples of one bucket share a batch.

        A batch that a bucket's last examples do not fill is filled up from the bucket's order in the next epoch.
        """
        epoch, position = divmod(number, sum(self._batches.values()))
        if epoch not in self._plan:  # made once an epoch: for 10,000 pictures it takes 10 ms
            self._plan.clear()
            self._plan[epoch] = self._planned(epoch)
        return self._plan[epoch][position]

    @cached_property
    def _buckets(self) -> dict[tuple[int, ...], list[int]]:
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index, size in enumerate(self.sizes):
            buckets.setdefault(size, []).append(index)
        return dict(sorted(buckets.items()))

    @cached_property
    def _batches(self) -> dict[tuple[int, ...], int]:
        return {size: -(-len(members) // self.batch_size) for size, members in self._buckets.items()}

    def _planned(self, epoch: int) -> list[list[int]]:
        plan = []
        for size, members in self._buckets.items():
            order: list[int] = []
            round_ = 0
            while len(order) < self._batches[size] * self.batch_size:
                rng = generator(self.seed, epoch, round_, str(size), f"order{self.name}")
                order += [members[int(place)] for place in torch.randperm(len(members), generator=rng)]
                round_ += 1
            plan += [order[n * self.batch_size : (n + 1) * self.batch_size] for n in range(self._batches[size])]
        shuffled = torch.randperm(len(plan), generator=generator(self.seed, epoch, f"batches{self.name}"))
        return [plan[int(place)] for place in shuffled]


@dataclass(frozen=True)
class Batches:
    """All batches of a run; which examples are in one follows from (seed, step, micro-step) alone."""

    own: Pool
    prior: Pool | None
    conditioning: dict[str, Path]  # the base's, by text; if the text encoder is trained, of what is preserved alone
    shelf: Shelf
    config: TrainConfig
    device: torch.device
    drawn: dict[str, Path] = field(default_factory=dict)  # what the base draws, by preservation prompt
    small: "Batches | None" = None  # the same pictures at a lower resolution, for the first steps

    def at(self, step: int, micro: int) -> Batch:
        """The batch of a micro-step: a pure function of its place."""
        training = self.config.training
        if self.small and step < training.small_share * training.steps:
            return self.small.at(step, micro)
        number = step * training.accumulation + micro
        share = self.config.prior.share if self.prior else 0.0
        before, after = int(number * share), int((number + 1) * share)
        if self.prior and after > before:
            return self._batch(self.prior, before, step, micro)
        return self._batch(self.own, number - before, step, micro)

    def _batch(self, pool: Pool, turn: int, step: int, micro: int) -> Batch:
        config, own = self.config, pool is self.own
        indices = pool.indices(turn)
        rng = generator(config.seed, step, micro, "data")
        seen = [int(torch.randint(len(pool.views[index]), (), generator=rng)) for index in indices]
        views = [self.shelf.get(pool.views[index][view]) for index, view in zip(indices, seen, strict=True)]
        places = [pool.places[index][view] for index, view in zip(indices, seen, strict=True)]
        sizes = torch.tensor(places, dtype=torch.float32, device=self.device)
        kept = torch.rand(len(indices), generator=rng) >= (config.captions.dropout if own else 0.0)
        picks = torch.rand(len(indices), generator=rng).tolist()
        texts = [
            pool.texts[index][int(pick * len(pool.texts[index]))] for index, pick in zip(indices, picks, strict=True)
        ]
        alone = [own and one for one in self._alone(len(indices), rng)]
        shown = [config.trigger if one else text for text, one in zip(texts, alone, strict=True)]
        captions = tuple(text if keep else "" for text, keep in zip(shown, kept, strict=True))
        preserved = self._preserved(step * config.training.accumulation + micro, texts) if own else ()
        masks = [view.get("mask") for view in views]
        mean = torch.stack([view["mean"] for view in views])
        # Any size will do, as the base's own answer is the target; so those of other buckets are brought to this one.
        kept_latents = [
            functional.interpolate(self.shelf.get(self.drawn[text])["latents"][None], mean.shape[-2:])[0]
            if text in self.drawn
            else own_latents
            for text, own_latents in zip(preserved, mean, strict=False)
        ]
        return Batch(
            mean.to(self.device),
            torch.stack([view["std"] for view in views]).to(self.device),
            None if config.training.text_encoder else self._conditioning_of(captions, sizes),
            captions,
            len(indices),
            preserved,
            self._conditioning_of(preserved, sizes),
            torch.stack([mask for mask in masks if mask is not None]).to(self.device) if all_there(masks) else None,
            1.0 if own else config.prior.weight,
            sizes,
            torch.stack(kept_latents).to(self.device) if kept_latents else None,
        )

    def largest(self, steps: int) -> tuple[int, int]:
        """Step and micro-step of the batch, among the last of a run, that takes the most memory."""

        def size(number: int) -> int:
            batch = self.at(*divmod(number, self.config.training.accumulation))
            return batch.mean[0].numel() * (batch.whole + len(batch.preserved))

        end = steps * self.config.training.accumulation
        number = max(range(max(0, end - LOOKED_AT), end), key=size)
        return divmod(number, self.config.training.accumulation)

    def _alone(self, count: int, rng: torch.Generator) -> list[bool]:
        """Choose the captions that become the trigger alone. Draws nothing if none can: other runs keep their bits."""
        share = self.config.captions.trigger_only if self.config.trigger else 0.0
        return (torch.rand(count, generator=rng) < share).tolist() if share else [False] * count

    def _conditioning_of(self, texts: Sequence[str], sizes: Tensor) -> Conditioning | None:
        if not texts:
            return None
        rows = [self.shelf.get(self.conditioning[text]) for text in texts]
        stacked = {key: torch.stack([row[key] for row in rows]).to(self.device) for key in rows[0]}
        return {**stacked, "sizes": sizes[: len(texts)]}

    def _preserved(self, number: int, captions: Sequence[str]) -> tuple[str, ...]:
        """Return the prompts under which the first images of the `number`-th batch are to stay as the base draws them.

        Without a trigger, an image's own caption is what is trained, so that it cannot be preserved as well.
        """
        settings, per_batch = self.config.preservation, self.config.preservation.share * len(captions)
        count = int((number + 1) * per_batch) - int(number * per_batch)
        rng = generator(self.config.seed, number, "preservation")
        prompts = []
        for caption in captions[:count]:
            other, pick = torch.rand(2, generator=rng).tolist()
            if other < settings.others and settings.prompts:
                prompts.append(settings.prompts[int(pick * len(settings.prompts))])
            elif self.config.trigger:
                prompts.append(dataset.without_trigger(caption, self.config.trigger))
        return tuple(prompts)


def all_there(masks: Sequence[Tensor | None]) -> bool:
    """Tell whether the views of a batch have masks; in a run either all have them or none."""
    return all(mask is not None for mask in masks)
