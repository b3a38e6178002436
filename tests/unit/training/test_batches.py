"""Exposures: each image is seen as often as its repeats say, whatever the buckets and the batch size."""

from collections import Counter
from pathlib import Path

import pytest

from trainer.training.inputs.batches import Pool

BATCHES = 2000
# Images by bucket, one letter per subject, and how often each subject's images are in an epoch.
MIXTURES = [
    ("aaaaa aaa", 4, {"a": 1}),
    ("a b", 3, {"a": 2, "b": 5}),
    ("aaaaaaaaaaaaaaaaaaaaaaa aaaaaaa aa aa a", 6, {"a": 1}),
    ("aab abb aaa b", 1, {"a": 1, "b": 4}),
    ("aaaaaaaaaaaab b bb", 5, {"a": 1, "b": 10}),
]


def pool_of(buckets: str, batch_size: int, repeats: dict[str, int]) -> tuple[Pool, list[str]]:
    names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    for width, subjects in enumerate(buckets.split(), 1):
        for number, subject in enumerate(subjects):
            names += [f"{subject}{width}-{number}"] * repeats[subject]
            shapes += [(4, 8, 8 * width)] * repeats[subject]
    views = [(Path(str(index)),) for index in range(len(names))]
    return Pool(views, shapes, [(name,) for name in names], [""] * len(names), 0, batch_size), names


@pytest.mark.parametrize(("buckets", "batch_size", "repeats"), MIXTURES)
def test_exposures_follow_the_repeats(buckets: str, batch_size: int, repeats: dict[str, int]) -> None:
    """A batch follows from its number, and has images of one shape."""
    pool, names = pool_of(buckets, batch_size, repeats)
    batches = [pool.indices(number) for number in range(BATCHES)]
    assert [pool.indices(number) for number in reversed(range(60))] == batches[59::-1]
    assert all(len({pool.shapes[index] for index in batch}) == 1 for batch in batches)
    seen = Counter(names[index] for batch in batches for index in batch)
    assert seen.total() == BATCHES * batch_size
    share = seen.total() / len(names)
    for name in set(names):
        assert seen[name] / (share * repeats[name[0]]) == pytest.approx(1, abs=0.02), name
