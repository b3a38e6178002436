"""Aspect-ratio buckets: the sizes that the images of a dataset are resized and cropped to. Pure arithmetic."""

import math
from collections import Counter
from collections.abc import Sequence


def bucket(width: int, height: int, resolution: int, step: int = 64) -> tuple[int, int]:
    """Return the size (width, height) that a picture is resized and cropped to.

    Of all sizes in multiples of `step` whose area is at most resolution^2, the one of the nearest aspect ratio,
    and of these the largest.
    """
    area = resolution * resolution
    candidates = [
        (w, max(step, area // w // step * step))
        for w in range(step, max(step, 2 * resolution) + 1, step)
        if w * step <= area
    ] or [(step, step)]
    ratio = math.log(width / height)
    return min(candidates, key=lambda size: (abs(math.log(size[0] / size[1]) - ratio), -size[0] * size[1]))


def buckets(sizes: Sequence[tuple[int, int]], resolution: int) -> list[tuple[int, int]]:
    """Return the bucket of each picture (width, height) of a data set, with the rare buckets joined to others.

    A bucket of few pictures is seen in the same few batches again and again, so that there are at most 5 buckets, or
    one for each 20 pictures if that is more. The rarest goes to the one of the nearest aspect ratio.
    """
    found = [bucket(width, height, resolution) for width, height in sizes]
    counts = Counter(found)
    while len(counts) > max(5, len(sizes) // 20):
        rare = min(counts, key=lambda size: (counts[size], size))
        near = min(
            counts.keys() - {rare}, key=lambda size: (abs(math.log(size[0] * rare[1] / size[1] / rare[0])), size)
        )
        found = [near if size == rare else size for size in found]
        counts = Counter(found)
    return found
