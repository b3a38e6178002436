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
    noise = FlowNoise(lambda _shape: 3.0)
    image, random = torch.randn(SHAPE), torch.randn(SHAPE)
    timesteps = torch.tensor([0.0, 250.0, 1000.0])
    noisy, target = (step(image, random, timesteps) for step in (noise.add_noise, noise.target))
    assert torch.equal(noisy[0], image[0])
    assert torch.allclose(noisy[1], 0.75 * image[1] + 0.25 * random[1])
    assert torch.equal(noisy[2], random[2])
    assert torch.equal(target, random - image)
    assert noise.snr(torch.tensor([250.0, 500.0])).tolist() == pytest.approx([9.0, 1.0])
    error = 0.1 * torch.ones_like(image[1])
    implied = noisy[1] - 0.25 * (target[1] + error)
    squared = float((implied - image[1]).pow(2).mean())
    assert float(noise.error_scale(noise.snr(timesteps[1:2]))) == pytest.approx(0.01 / squared)
