"""Noise schedules, against the formulas of their papers."""

import pytest
import torch

from trainer.families.noise import DiscreteNoise, FlowNoise

SHAPE = (3, 16, 8, 8)


def test_shares_of_whole_timesteps_reach_the_first_and_the_last() -> None:
    noise = DiscreteNoise(torch.linspace(0.999, 0.01, 1000), "epsilon")
    shares = torch.tensor([0.0, 0.4999, 0.5, 0.9999, 1.0])
    assert noise.at(shares, 0, 999, SHAPE).tolist() == [0, 499, 500, 999, 999]
    assert noise.at(shares, 700, 701, SHAPE).tolist() == [700, 700, 701, 701, 701]


def test_the_lines_of_flow_matching_are_straight() -> None:
    """`test_transformers.py` compares them with diffusers."""
    noise, timesteps = FlowNoise(lambda _shape: 3.0), torch.tensor([250.0, 500.0])
    assert noise.snr(timesteps).tolist() == pytest.approx([9.0, 1.0])
    image, random = torch.randn(SHAPE[1:]), torch.randn(SHAPE[1:])
    implied = (0.75 * image + 0.25 * random) - 0.25 * (random - image + 0.1)
    squared = float((implied - image).pow(2).mean())
    assert float(noise.error_scale(noise.snr(timesteps[:1]))) == pytest.approx(0.01 / squared)
