"""All that is random in training, from numbers that name the place it is used in; no global state is read.

So a step's noise depends on the seed and the step alone, and a resumed run repeats an uninterrupted one bit for bit.
"""

import hashlib

import torch


def generator(*place: int | str) -> torch.Generator:
    """A CPU generator for one place, such as (seed, step, micro-step, "noise"): the same place, the same numbers."""
    digest = hashlib.sha256(repr(place).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def seed_dropout(*place: int | str) -> None:
    """Set torch's own generators for a place: dropout inside layers draws from them.

    Gradient checkpointing saves and restores them, so that a layer computed twice drops the same.
    """
    torch.manual_seed(generator(*place).initial_seed() % 2**63)
