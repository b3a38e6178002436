"""Masks of views: gray counts by its share, in the middle as well as at the edge of what is learned."""

import pytest
import torch
from PIL import Image

from trainer.training import augment


@pytest.mark.parametrize(("gray", "share"), [(0, 0.0), (64, 0.25), (128, 0.5), (255, 1.0)])
def test_gray_in_a_mask_is_its_share(gray: int, share: float) -> None:
    view = augment.View()
    mask = augment.mask(Image.new("L", (64, 64), gray), (64, 64), (64, 64), view, torch.zeros(4, 8, 8))
    assert mask.shape == (1, 8, 8)
    assert torch.allclose(mask, torch.full_like(mask, share), atol=0.01)
