"""Aspect-ratio buckets: the sizes that the images of a dataset are resized and cropped to. Pure arithmetic."""

import math
from collections import Counter
from collections.abc import Sequence

Size = tuple[int, int]  # width, height
MAX_LOST = 0.1  # share of an image that may be cut off to join its bucket to another one


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
    for each 20 images if that is more, as long as no image loses `MAX_LOST` of its area by it: the images of the rarest
    bucket go to those of the nearest aspect ratios. A bucket with an image that fits no other one stays.
    """
    assigned = [bucket(width, height, resolution) for width, height in sizes]
    counts, staying = Counter(assigned), set[Size]()
    while len(counts) > max(5, len(sizes) // 20) and (joinable := counts.keys() - staying):
        rarest = min(joinable, key=lambda size: (counts[size], size))
        others = sorted(counts.keys() - {rarest})
        moved = {}
        for number, size in enumerate(sizes):
            if assigned[number] == rarest:
                moved[number] = min(others, key=lambda other: _distance(other, size))
        if all(lost(sizes[number], size) < MAX_LOST for number, size in moved.items()):
            assigned = [moved.get(number, size) for number, size in enumerate(assigned)]
            counts = Counter(assigned)
        else:
            staying.add(rarest)
    return assigned


def lost(image: Size, size: Size) -> float:
    """Return the share of an image that cropping it to the shape of a bucket cuts off."""
    return 1 - math.exp(-_distance(image, size))


def _distance(size: Size, other: Size) -> float:
    """Return the distance of two aspect ratios on a logarithmic scale."""
    return abs(math.log(size[0] / size[1]) - math.log(other[0] / other[1]))
