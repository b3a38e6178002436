"""Aspect-ratio buckets: the sizes that the images of a dataset are resized and cropped to. Pure arithmetic."""

import math
from collections import Counter
from collections.abc import Sequence

Size = tuple[int, int]  # width, height


def bucket(width: int, height: int, resolution: int, step: int = 64) -> Size:
    """Return the size that an image is resized and cropped to.

    Of all sizes in multiples of `step` whose area is at most resolution^2, the one of the nearest aspect ratio,
    and of these the largest.
    """
    area = resolution * resolution
    candidates = []
    for candidate_width in range(step, max(step, 2 * resolution) + 1, step):
        if candidate_width * step <= area:
            candidates.append((candidate_width, max(step, area // candidate_width // step * step)))
    if not candidates:
        return step, step
    return min(candidates, key=lambda size: (_distance(size, (width, height)), -size[0] * size[1]))


def buckets(sizes: Sequence[Size], resolution: int) -> list[Size]:
    """Return the bucket of each image (width, height) of a dataset, with rare buckets joined to others.

    Images of a small bucket are seen in the same few batches again and again. So there are at most 5 buckets, or one
    for each 20 images if that is more; the rarest is joined to the one of the nearest aspect ratio.
    """
    assigned = [bucket(width, height, resolution) for width, height in sizes]
    counts = Counter(assigned)
    while len(counts) > max(5, len(sizes) // 20):
        rarest = min(counts, key=lambda size: (counts[size], size))
        others = counts.keys() - {rarest}
        nearest = min(others, key=lambda size: (abs(math.log(size[0] * rarest[1] / size[1] / rarest[0])), size))
        assigned = [nearest if size == rarest else size for size in assigned]
        counts = Counter(assigned)
    return assigned


def _distance(size: Size, other: Size) -> float:
    """Return the distance of two aspect ratios on a logarithmic scale."""
    return abs(math.log(size[0] / size[1]) - math.log(other[0] / other[1]))
