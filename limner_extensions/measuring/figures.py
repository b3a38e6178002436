"""Figures of checkpoints from the features of their images. Plain arithmetic, with the same result on each machine.

All features are taken from the mean of the base model's images, so that what all images share does not count, and have
length 1; images are compared by their product, the cosine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner_extensions.measuring.table import FEWEST_PROMPTS, MEASURES, Figure, Measure, Reason, Row

Array = NDArray[np.float64]
Cell = tuple[int, float]  # step and strength of a row
RESAMPLES = 4000
FLAT = 0.02  # below this, a distance in features tells nothing
FEWEST = 3  # training images whose nearest neighbors say how close they usually are


@dataclass(frozen=True)
class Images:
    """Features [prompts, seeds, d] of images with the trigger and, of the same noise, without it if there is one."""

    called: Array
    plain: Array | None

    @property
    def free(self) -> Array:
        """Those without the trigger, or all if there is none."""
        return self.called if self.plain is None else self.plain


class Undefined(Exception):
    """A measure has no figures; its only argument is the reason."""


class Scale:
    """References of a measurement: images of the base model, training images [n, d], and texts.

    `texts` [prompts, d] are features of the prompts themselves, without the trigger, if the model has any. In features
    of the base model's own (`own`) likeness has no figures.
    """

    def __init__(self, base: Images, training: Array, texts: Array | None, *, own: bool = False) -> None:
        parts = [part.reshape(-1, part.shape[-1]) for part in (base.called, base.plain) if part is not None]
        self._center = np.concatenate(parts).mean(0)
        self.training = _unit(training - self._center)
        self.base = self._centered(base)
        self._raw, self._texts, self._own = base, texts, own

    def values(self, images: Images) -> tuple[dict[Measure, Array], dict[Measure, Reason]]:
        """Return the figure [prompts, seeds] of each image in each measure, and why a measure has none."""
        centered = self._centered(images)
        figures: dict[Measure, Array] = {}
        missing: dict[Measure, Reason] = {}
        measures: dict[Measure, Callable[[], Array]] = {
            "likeness": lambda: self._likeness(centered.called),
            "adherence": lambda: self._adherence(centered.called, images.called),
            "copying": lambda: self._copying(centered.called),
            "leak": lambda: self._leak(centered),
            "drift": lambda: self._drift(*self._without_trigger(centered)),
        }
        for name in MEASURES:
            try:
                figures[name] = measures[name]()
            except Undefined as reason:
                missing[name] = reason.args[0]
        return figures, missing

    def _centered(self, images: Images) -> Images:
        plain = None if images.plain is None else _unit(images.plain - self._center)
        return Images(_unit(images.called - self._center), plain)

    def _without_trigger(self, images: Images) -> tuple[Array, Array]:
        if images.plain is None or self.base.plain is None:
            raise Undefined("no trigger")
        return images.plain, self.base.plain

    def _likeness(self, images: Array) -> Array:
        if self._own:
            raise Undefined("own features")
        return self._toward_training(images, self.base.called)

    def _toward_training(self, images: Array, before: Array) -> Array:
        """Return how far images have come from those of the base model, at 0, to the training images, at 1.

        By the cosine with the mean of the training images. 1 is what each of them has with the mean of the others, or,
        if it is the only one, with itself.
        """
        total, count = self.training.sum(0), len(self.training)
        mean = _unit(total)
        others = mean if count == 1 else _unit(total - self.training)
        among = float((self.training * others).sum(1).mean())
        span = among - float((self.base.called @ mean).mean())
        if span < FLAT:
            raise Undefined("alike")
        return np.asarray((images @ mean - before @ mean) / span)

    def _leak(self, images: Images) -> Array:
        """Return the likeness of images without the trigger; away from the training images is none."""
        plain, before = self._without_trigger(images)
        return self._toward_training(plain, before).clip(min=0)

    def _copying(self, images: Array) -> Array:
        """Return how much closer the nearest training image is than these are to each other; 1 is one of them."""
        if len(self.training) < FEWEST:
            raise Undefined("few images")
        among = self.training @ self.training.T
        np.fill_diagonal(among, -1.0)
        usual = float(np.median(among.max(1)))
        if 1 - usual < FLAT:
            raise Undefined("alike")
        nearest = (images @ self.training.T).max(-1)
        return np.asarray(((nearest - usual) / (1 - usual)).clip(min=0))

    def _drift(self, images: Array, before: Array) -> Array:
        """Return the distance of images from the base model's of the same noise; 1 is that of another seed."""
        other_seeds = 1 - (before @ before.transpose(0, 2, 1))  # [prompts, seeds, seeds]
        seeds = before.shape[1]
        typical = float(other_seeds.sum() / (len(before) * seeds * max(1, seeds - 1)))
        if typical < FLAT:
            raise Undefined("same seeds")
        return np.asarray((1 - (images * before).sum(-1)) / typical)

    def _adherence(self, centered: Array, raw: Array) -> Array:
        """Return how much closer images are to their own prompt than to the others; 1 is the bare base model.

        A prompt is its text or, where the model reads none, the base model's images of it with other seeds.
        """
        if len(raw) < 2:
            raise Undefined("one prompt")
        if self._texts is None:
            images, own = centered, self.base.free
            anchors = own
        else:
            images, own = _unit(raw), _unit(self._raw.free)
            anchors = np.repeat(_unit(self._texts)[:, None], raw.shape[1], 1)
        by_prompt = _contrast(own, anchors).mean(1)
        usual, chance = by_prompt.mean(), by_prompt.std(ddof=1) / len(by_prompt) ** 0.5
        if usual < 2 * chance:
            raise Undefined("same prompts")
        return np.asarray(_contrast(images, anchors) / usual)


def _contrast(images: Array, anchors: Array) -> Array:
    """Return the cosine [prompts, seeds] of images with the anchors of their prompt less that with those of others.

    The anchor of the same seed does not count: it may be the image itself, or have its composition from the noise.
    """
    count, seeds = images.shape[:2]
    cosines = np.einsum("psd,qtd->psqt", images, anchors)
    different = 1 - np.eye(seeds)
    by_prompt = np.einsum("psqt,st->psq", cosines, different) / max(1, seeds - 1)
    own = np.einsum("psp->ps", by_prompt)
    return np.asarray(own - (by_prompt.sum(-1) - own) / (count - 1))


def _unit(features: Array) -> Array:
    return np.asarray(features / np.linalg.norm(features, axis=-1, keepdims=True).clip(min=1e-12))


# Rows -----------------------------------------------------------------------------------------------------------


def rows(measured: Mapping[Cell, Images], scale: Scale, base: Images) -> tuple[list[Row], dict[Measure, Reason]]:
    """Return a row for the base model and for each checkpoint, and why a measure has no figures.

    The last checkpoint, from which those of the same strength differ, is that of the highest step.
    """
    draws = _resamples(*base.called.shape[:2])
    values, missing = scale.values(base)
    last_step = max((step for step, _strength in measured), default=0)
    by_cell = {cell: scale.values(images)[0] for cell, images in measured.items()}
    listed = [Row(0, 0.0, {name: _figure(each, draws) for name, each in values.items()})]
    for (step, strength), own in by_cell.items():
        compared = step != last_step and len(base.called) >= FEWEST_PROMPTS
        last = by_cell.get((last_step, strength), {}) if compared else {}
        listed.append(
            Row(
                step,
                strength,
                {name: _figure(each, draws) for name, each in own.items()},
                {name: _figure(own[name] - last[name], draws) for name in own if name in last},
            )
        )
    return listed, missing


def _resamples(prompts: int, seeds: int) -> tuple[Any, Any]:
    """Draw prompts and, for each, seeds with replacement: the same for all figures, so that differences are paired."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(prompts, size=(RESAMPLES, prompts, 1))
    return chosen, rng.integers(seeds, size=(RESAMPLES, prompts, seeds))


def _figure(values: Array, draws: Sequence[Any]) -> Figure:
    """Return the mean and its 95 % interval by a bootstrap over prompts and, within them, seeds."""
    means = values[draws[0], draws[1]].mean((1, 2))
    tail = _tail(len(values) if len(values) > 1 else values.shape[1])
    low, high = np.quantile(means, (tail, 1 - tail))
    return Figure(float(values.mean()), min(float(low), float(values.mean())), max(float(high), float(values.mean())))


def _tail(count: int) -> float:
    """Return the share of resamples to leave out at either end for a 95 % interval of a mean of so many values.

    Of few values, resamples vary less than means do: the expanded percentile interval, Hesterberg 2015,
    https://arxiv.org/abs/1411.5279, with the expansion of Student's t by Fisher & Cornish 1960.
    """
    z, freedom = 1.959964, max(1, count - 1)
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-student * (count / freedom) ** 0.5)
