"""The objective against its formulas, number by number."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anima_pipe.errors import ConfigError
from anima_pipe.flow_loss import (
    SigmaConfig,
    add_noise,
    draw,
    sample_losses,
    sample_sigmas,
    shift_sigmas,
    velocity_target,
)

MANY = 200_000


def sampled(**settings: object) -> torch.Tensor:
    return sample_sigmas(MANY, SigmaConfig(**settings), torch.Generator().manual_seed(0))


def test_a_noisy_latent_lies_on_the_line_between_latent_and_noise():
    latents, noise = torch.full((2, 16, 2, 2), 3.0), torch.full((2, 16, 2, 2), -1.0)
    noisy = add_noise(latents, noise, torch.tensor([0.0, 0.25]))
    assert torch.equal(noisy[0], latents[0])
    assert torch.allclose(noisy[1], torch.full((16, 2, 2), 0.75 * 3.0 - 0.25))


def test_the_target_leads_from_the_latent_to_the_noise():
    latents, noise = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 4, 4)
    there = latents + 1.0 * velocity_target(latents, noise)
    assert torch.allclose(there, noise, atol=1e-6)


def test_the_loss_of_a_sample_is_its_own_mean_square_in_float32():
    target = torch.zeros(2, 16, 2, 2)
    velocity = torch.stack([torch.full((16, 2, 2), 2.0), torch.full((16, 2, 2), 0.5)]).bfloat16()
    assert sample_losses(velocity, target).tolist() == [4.0, 0.25]


@pytest.mark.parametrize(
    ("settings", "mean", "quantiles"),
    [
        # Of the sigmoid of a standard normal: quantiles are sigmoids of the normal's.
        ({}, 0.5, {0.1: 0.217, 0.5: 0.5, 0.9: 0.783}),
        ({"shift": 3.0}, 0.713, {0.1: 0.454, 0.5: 0.75, 0.9: 0.915}),
        ({"distribution": "uniform"}, 0.5, {0.1: 0.1, 0.5: 0.5, 0.9: 0.9}),
        ({"distribution": "uniform", "shift": 3.0}, 0.676, {0.1: 0.25, 0.5: 0.75, 0.9: 0.964}),
    ],
)
def test_noise_levels_have_the_moments_of_their_distribution(settings, mean, quantiles):
    sigmas = sampled(**settings)
    assert sigmas.mean().item() == pytest.approx(mean, abs=3e-3)
    for share, value in quantiles.items():
        assert sigmas.quantile(share).item() == pytest.approx(value, abs=5e-3)


def test_a_wider_sigmoid_trains_more_at_both_ends():
    narrow, wide = sampled(sigmoid_scale=0.5), sampled(sigmoid_scale=1.5)
    assert wide.std() > 1.5 * narrow.std()
    expected = torch.sigmoid(torch.tensor(1.5 * 1.2815515))
    assert wide.quantile(0.9).item() == pytest.approx(expected.item(), abs=5e-3)


@given(shift=st.floats(0.1, 10.0), sigma=st.floats(0.0, 1.0))
def test_a_shift_keeps_the_ends_and_is_undone_by_its_inverse(shift, sigma):
    sigmas = torch.tensor([0.0, sigma, 1.0], dtype=torch.float64)
    shifted = shift_sigmas(sigmas, shift)
    assert shifted[0] == 0
    assert shifted[2].item() == pytest.approx(1)
    assert torch.allclose(shift_sigmas(shifted, 1 / shift), sigmas, atol=1e-12)


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    shape, config = torch.Size((2, 16, 4, 6)), SigmaConfig()
    first, again, other = draw(shape, config, 7), draw(shape, config, 7), draw(shape, config, 8)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.sigmas, again.sigmas)
    assert not torch.equal(first.noise, other.noise)
    assert first.noise.dtype == first.sigmas.dtype == torch.float32


def test_the_loss_of_a_perfect_guess_at_the_mean_is_the_variance_left():
    draws = draw(torch.Size((64, 16, 8, 8)), SigmaConfig(), 0)
    latents = torch.zeros_like(draws.noise)
    losses = sample_losses(torch.zeros_like(latents), velocity_target(latents, draws.noise))
    assert losses.mean().item() == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {"distribution": "cubic"},
        {"shift": 0.0},
        {"shift": -1.0},
        {"sigmoid_scale": 0.0},
        {"shift": math.nan},
    ],
)
def test_impossible_noise_levels_are_refused(settings):
    with pytest.raises(ConfigError):
        SigmaConfig(**settings)
