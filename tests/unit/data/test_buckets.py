"""Buckets of sets whose images were cropped by hand: as few as the images allow, and no image is cut hard."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import buckets
from trainer.data.buckets import Size


def hand_cropped(seed: int, count: int = 20) -> list[Size]:
    """Images of any shape between 1:2 and 2:1, as people leave them when they crop by eye."""
    rng = random.Random(seed)
    ratios = [math.exp(rng.uniform(-math.log(2), math.log(2))) for _ in range(count)]
    return [(round(800 * ratio**0.5), round(800 / ratio**0.5)) for ratio in ratios]


@pytest.mark.parametrize(("resolution", "most"), [(512, 0.13), (1024, 0.1)])
def test_few_pixels_of_hand_cropped_images_are_cut_off(resolution: int, most: float) -> None:
    """In the median, the worst of 20 images loses about what its own bucket costs it: 12 % at 512 pixels."""
    worst = []
    for seed in range(100):
        images = hand_cropped(seed)
        for image, bucket in zip(images, buckets.buckets(images, resolution), strict=True):
            own = buckets.lost(image, buckets.bucket(*image, resolution))
            assert buckets.lost(image, bucket) < max(own, buckets.MAX_LOST) + 1e-9
        worst.append(max(map(buckets.lost, images, buckets.buckets(images, resolution))))
    assert statistics.median(worst) <= most


@given(st.integers(1, 8000), st.integers(1, 8000), st.sampled_from([64, 256, 512, 768, 1024]))
def test_a_bucket_has_near_the_wanted_area_and_shape(width: int, height: int, resolution: int) -> None:
    w, h = buckets.bucket(width, height, resolution)
    assert w % 64 == h % 64 == 0
    assert w * h <= resolution**2
    assert buckets.bucket(1, 1, resolution) == (resolution, resolution)
    assert w >= h if width > height else h >= w


def test_rare_buckets_join_others_where_little_is_lost() -> None:
    shapes = [(512, 512)] * 6 + [(512, 768)] * 4 + [(768, 512), (550, 500), (1024, 512), (512, 1024)]
    own = [buckets.bucket(*shape, 1024) for shape in shapes]
    assert len(set(own)) == 6
    assigned = buckets.buckets(shapes, 1024)
    assert assigned == [*own[:11], own[0], *own[12:]], "550 x 500 alone is near enough to another one"
    many = [(512 + 64 * (n % 8), 512) for n in range(400)]
    assert buckets.buckets(many, 512) == [buckets.bucket(w, h, 512) for w, h in many]
    assert buckets.buckets([], 512) == []
    assert buckets.lost((400, 400), (512, 512)) == 0
    assert buckets.lost((400, 800), (512, 512)) == pytest.approx(0.5)
    assert buckets.lost((900, 800), (512, 512)) == pytest.approx(1 / 9)
