"""Random generators for training, seeded by where their numbers are used; no global state is read.

So a step's noise depends only on the seed and the step, and a resumed run repeats an uninterrupted one bit for bit.
"""

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator for a key, such as (seed, step, micro-step, "noise"): same key, same numbers."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def seed_dropout(*key: int | str) -> None:
    """Seed torch's own generators for a key; dropout inside layers draws from them.

    Gradient checkpointing saves and restores them, so that a layer that is recomputed drops the same values.
    """
    torch.manual_seed(generator(*key).initial_seed() % 2**63)
