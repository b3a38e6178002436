"""Batches: images, their views and their captions for each step. Everything follows from seed and step."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from trainer import devices
from trainer.config import TrainConfig
from trainer.data.captions import of_class
from trainer.families import LENGTHS, Conditioning, stacked
from trainer.rng import generator
from trainer.training.inputs.tensor_cache import TensorCache

CONSIDERED = 100  # last batches of each resolution, among which the largest is searched


@dataclass(frozen=True)
class Batch:
    """Inputs of one pass: mean and standard deviation of the latents [b, c, h, w], conditioning, captions.

    `preserved` are prompts with which the adapter should predict what the base predicts, for `preserved_latents`
    [k, c, h, w]: latents that the base generated from them, or the batch's own, whose captions then lack the trigger
    or have the class word instead; their conditioning is the base's, and `base_prediction` [k, c, h, w] what the base
    predicts for them, if that is known already; `preserved_from` [k] in 0..1 is the least share of the timesteps at
    which each is preserved, None is 0 for all; if not `is_trained`, only those count.

    The conditioning of the captions is None if they must be encoded in the step, because the text encoder is trained.
    `mask` [b, 1, h, w] in 0..1 weights the loss, None is everywhere 1; `weight` is the batch's in the loss. `sizes`
    [b, 6] is part of any conditioning: original height and width, top and left of the crop, height and width.

    A batch may be a micro-batch of a larger one of `whole` images: those at `rows` there.
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
    preserved_from: Tensor | None = None
    is_trained: bool = True
    base_prediction: Tensor | None = None
    rows: slice = field(default_factory=lambda: slice(None))

    def part(self, number: int, of: int) -> "Batch":
        """Return one of `of` micro-batches: every `of`-th image, starting with the `number`-th.

        Latents to preserve belong to the batch's first images, so that they are distributed in the same way.
        """
        if of == 1:
            return self
        rows = slice(number, None, of)
        parts: dict[str, Tensor | None] = {
            name: None if tensor is None else tensor[rows]
            for name, tensor in vars(self).items()
            if name in ("mean", "std", "mask", "sizes", "preserved_latents", "preserved_from")
        }
        texts = {name: _rows(getattr(self, name), rows) for name in ("conditioning", "preserved_conditioning")}
        return replace(self, captions=self.captions[rows], preserved=self.preserved[rows], rows=rows, **parts, **texts)  # type: ignore[arg-type]

    def passes(self) -> list["Batch"]:
        """Return it in the passes that it is computed in: a single image and its preserved row one after the other.

        Together they would take the memory of two images where there was only enough for one.
        """
        if len(self.captions) != 1 or not self.preserved:
            return [self]
        alone = replace(self, preserved=(), preserved_conditioning=None, preserved_latents=None, base_prediction=None)
        return [alone, replace(self, is_trained=False)]


def _rows(conditioning: Conditioning | None, rows: slice) -> Conditioning | None:
    return None if conditioning is None else {key: tensor[rows] for key, tensor in conditioning.items()}


@dataclass(frozen=True)
class Pool:
    """Images that are sampled together, in epochs: the cached views, latent shape, texts and trigger of each.

    `size_conditioning` holds the `Batch.sizes` of each view. `name` tells pools of one run apart; the dataset's own has
    none.
    """

    views: list[tuple[Path, ...]]
    shapes: list[tuple[int, ...]]
    texts: list[tuple[str, ...]]
    triggers: list[str]
    seed: int
    batch_size: int
    name: str = ""
    size_conditioning: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    _plan: dict[int, list[list[int]]] = field(default_factory=dict, compare=False)

    def indices(self, number: int) -> list[int]:
        """Return the examples of the `number`-th batch, which are of one bucket.

        Each bucket is a stream of shuffles, one after the other, that is cut into batches. So every example is seen
        equally often: a bucket whose examples do not fill its last batch of an epoch carries them over to the next.
        """
        cycle, position = divmod(number, self._epoch_ends[-1])
        inside = bisect_right(self._epoch_ends, position)
        epoch, position = cycle * len(self._epoch_ends) + inside, position - [0, *self._epoch_ends][inside]
        if epoch not in self._plan:  # computed once per epoch: for 10,000 images it takes 10 ms
            self._plan.clear()
            self._plan[epoch] = self._planned(epoch)
        return self._plan[epoch][position]

    @cached_property
    def _buckets(self) -> dict[tuple[int, ...], list[int]]:
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index, size in enumerate(self.shapes):
            buckets.setdefault(size, []).append(index)
        return dict(sorted(buckets.items()))

    @cached_property
    def _epoch_ends(self) -> list[int]:
        """The number of batches up to the end of each epoch; after `batch_size` epochs nothing is carried over."""
        counts = [len(members) for members in self._buckets.values()]
        return [sum(epoch * count // self.batch_size for count in counts) for epoch in range(1, self.batch_size + 1)]

    def _planned(self, epoch: int) -> list[list[int]]:
        plan = []
        for size, members in self._buckets.items():
            first, end = (number * len(members) // self.batch_size for number in (epoch, epoch + 1))
            stream = self._stream(size, first * self.batch_size, end * self.batch_size)
            plan += [stream[start : start + self.batch_size] for start in range(0, len(stream), self.batch_size)]
        shuffled = torch.randperm(len(plan), generator=generator(self.seed, epoch, f"batches{self.name}"))
        return [plan[int(index)] for index in shuffled]

    def _stream(self, size: tuple[int, ...], start: int, end: int) -> list[int]:
        """Return a piece of the stream of a bucket: its examples in one random order after the other."""
        members = self._buckets[size]
        first = start // len(members)
        stream: list[int] = []
        for number in range(first, -(-end // len(members))):
            rng = generator(self.seed, number, 0, str(size), f"order{self.name}")
            stream += [members[int(index)] for index in torch.randperm(len(members), generator=rng)]
        skipped = first * len(members)
        return stream[start - skipped : end - skipped]


@dataclass(frozen=True)
class Pools:
    """All images that are trained, at one resolution."""

    own: Pool
    priors: tuple[Pool, ...]  # of regularization images, which take turns


@dataclass(frozen=True)
class Batches:
    """All batches of a run; the examples in one follow from (seed, step, micro-step) alone."""

    resolutions: tuple[Pools, ...]  # the same images at each, which take turns
    conditioning: dict[str, Path]  # the base's, by prompt; if the text encoder is trained, only for preservation
    cache: TensorCache
    config: TrainConfig
    device: torch.device
    preserved: dict[str, Path] = field(default_factory=dict)  # latents that the base generated, by prompt
    held: Pool | None = None  # images that are only measured
    # What the base predicts for the latents to preserve of some steps, by (step, micro-step) and (part, parts).
    base_predictions: dict[tuple[tuple[int, int], tuple[int, int]], Tensor] = field(default_factory=dict, compare=False)

    @property
    def own(self) -> Pool:
        """The images of the dataset at the first resolution."""
        return self.resolutions[0].own

    @property
    def held_count(self) -> int:
        """Number of held-out images."""
        return len(self.held.views) if self.held else 0

    def held_batch(self, index: int) -> Batch:
        """Return a batch of one held-out image, whole, with its caption."""
        assert self.held
        view = self.cache.get(self.held.views[index][0])
        sizes = torch.tensor([self.held.size_conditioning[index][0]], dtype=torch.float32, device=self.device)
        captions = self.held.texts[index][:1]
        return Batch(
            view["mean"][None].to(self.device),
            view["std"][None].to(self.device),
            None if self.config.training.text_encoder else self._conditioning_of(captions, sizes),
            captions,
            1,
            mask=view["mask"][None].to(self.device) if "mask" in view else None,
            sizes=sizes,
        )

    def at(self, step: int, micro: int) -> Batch:
        """Return the batch of a micro-step; a pure function."""
        micro_steps = step * self.config.training.gradient_accumulation + micro
        number, turn = divmod(micro_steps, len(self.resolutions))
        pools = self.resolutions[turn]
        share = self.config.regularization.share if pools.priors else 0.0
        before, after = int(number * share), int((number + 1) * share)
        if after > before:
            prior = pools.priors[before % len(pools.priors)]
            return self._batch(prior, before // len(pools.priors), step, micro)
        return self._batch(pools.own, number - before, step, micro)

    def _batch(self, pool: Pool, number: int, step: int, micro: int) -> Batch:
        config, own = self.config, not pool.name
        indices = pool.indices(number)
        rng = generator(config.seed, step, micro, "data")
        chosen = [int(torch.randint(len(pool.views[index]), (), generator=rng)) for index in indices]
        views = [self.cache.get(pool.views[index][view]) for index, view in zip(indices, chosen, strict=True)]
        rows = [pool.size_conditioning[index][view] for index, view in zip(indices, chosen, strict=True)]
        sizes = devices.send(torch.tensor(rows, dtype=torch.float32), self.device)
        dropped = torch.rand(len(indices), generator=rng) < (config.captions.dropout if own else 0.0)
        picks = torch.rand(len(indices), generator=rng).tolist()
        texts = [
            pool.texts[index][int(pick * len(pool.texts[index]))] for index, pick in zip(indices, picks, strict=True)
        ]
        captions, preserved = tuple(texts), tuple[str, ...]()
        if own:
            triggers = [pool.triggers[index] for index in indices]
            captions = self._captions(texts, triggers, dropped.tolist(), rng)
            preserved = self._preserved_prompts(number, texts, triggers)
        mean = torch.stack([view["mean"] for view in views])
        masks = [view["mask"] for view in views if "mask" in view]  # either all views of a run have one or none
        return Batch(
            devices.send(mean, self.device),
            devices.send(torch.stack([view["std"] for view in views]), self.device),
            None if config.training.text_encoder else self._conditioning_of(captions, sizes),
            captions,
            len(indices),
            preserved,
            self._conditioning_of(preserved, sizes),
            devices.send(torch.stack(masks), self.device) if masks else None,
            1.0 if own else config.regularization.weight,
            sizes,
            self._preserved_latents(preserved, mean),
            self._preserved_from(preserved),
        )

    def _captions(
        self, texts: Sequence[str], triggers: Sequence[str], dropped: Sequence[bool], rng: torch.Generator
    ) -> tuple[str, ...]:
        """Replace some captions by their trigger alone, and drop others."""
        share = self.config.captions.trigger_only if any(triggers) else 0.0
        captions = list(texts)
        if share:  # without it nothing is drawn, so that other runs keep their bits
            alone = (torch.rand(len(texts), generator=rng) < share).tolist()
            captions = [trigger if only else text for text, trigger, only in zip(texts, triggers, alone, strict=True)]
        return tuple("" if drop else caption for caption, drop in zip(captions, dropped, strict=True))

    def _preserved_latents(self, prompts: Sequence[str], own: Tensor) -> Tensor | None:
        """Return the latents that the base generated from prompts, or else the batch's own [b, c, h, w]."""
        latents = list(own[: len(prompts)])
        for number, prompt in enumerate(prompts):
            if prompt in self.preserved:
                # The target is the base's own prediction, for which any size will do: they are resized to this bucket.
                generated = self.cache.get(self.preserved[prompt])["latents"]
                latents[number] = functional.interpolate(generated[None], own.shape[-2:])[0]
        return devices.send(torch.stack(latents), self.device) if latents else None

    def _preserved_from(self, prompts: Sequence[str]) -> Tensor | None:
        """Return the share of noise [k] from which each is preserved: from the first on if the base generated it."""
        least = self.config.preservation.noise_from
        if not prompts or not least:
            return None
        return devices.send(torch.tensor([least * (prompt not in self.preserved) for prompt in prompts]), self.device)

    def largest(self, steps: int) -> tuple[int, int]:
        """Return step and micro-step of the batch, among the last of a run, that takes the most memory."""

        def size(number: int) -> int:
            batch = self.at(*divmod(number, self.config.training.gradient_accumulation))
            return batch.mean[0].numel() * (batch.whole + len(batch.preserved))

        end = steps * self.config.training.gradient_accumulation
        number = max(range(max(0, end - CONSIDERED * len(self.resolutions)), end), key=size)
        return divmod(number, self.config.training.gradient_accumulation)

    def _conditioning_of(self, texts: Sequence[str], sizes: Tensor) -> Conditioning | None:
        if not texts:
            return None
        rows = [self.cache.get(self.conditioning[text]) for text in texts]
        columns = stacked({key: [row[key] for row in rows] for key in rows[0]})
        moved = {key: devices.send(tensor, self.device) for key, tensor in columns.items() if key != LENGTHS}
        return {**columns, **moved, "sizes": sizes[: len(texts)]}

    def _preserved_prompts(self, number: int, captions: Sequence[str], triggers: Sequence[str]) -> tuple[str, ...]:
        """Return the prompts of the `number`-th batch for which the base's output is preserved.

        Without a trigger, an image's own caption is trained, so that its output cannot be preserved as well.
        """
        settings, per_batch = self.config.preservation, self.config.preservation.share * len(captions)
        count = int((number + 1) * per_batch) - int(number * per_batch)
        rng = generator(self.config.seed, number, "preservation")
        prompts = []
        for caption, trigger in zip(captions[:count], triggers[:count], strict=True):
            other, pick = torch.rand(2, generator=rng).tolist()
            if other < settings.generated_share and settings.prompts:
                prompts.append(settings.prompts[int(pick * len(settings.prompts))])
            elif trigger:
                prompts.append(of_class(caption, self.config.class_words))
        return tuple(prompts)
