"""The objective against its formulas, number by number."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anima_pipe.errors import ConfigError
from anima_pipe.objective.flow_loss import (
    LOSSES,
    LossConfig,
    ObjectiveConfig,
    add_noise,
    draw,
    huber_turn,
    sample_losses,
    velocity_target,
)
from anima_pipe.objective.noise import NoiseConfig, sample_noise
from anima_pipe.objective.sigmas import SigmaConfig, sample_sigmas, shift_sigmas, size_shift

MANY = 200_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampled(size: int = 64, **settings: object) -> torch.Tensor:
    return sample_sigmas((MANY, 16, size, size), SigmaConfig(**settings), generator())


def test_a_noisy_latent_lies_on_the_line_between_latent_and_noise():
    latents, noise = torch.full((2, 16, 2, 2), 3.0), torch.full((2, 16, 2, 2), -1.0)
    noisy = add_noise(latents, noise, torch.tensor([0.0, 0.25]))
    assert torch.equal(noisy[0], latents[0])
    assert torch.allclose(noisy[1], torch.full((16, 2, 2), 0.75 * 3.0 - 0.25))


def test_the_target_leads_from_the_latent_to_the_noise():
    latents, noise = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 4, 4)
    there = latents + 1.0 * velocity_target(latents, noise)
    assert torch.allclose(there, noise, atol=1e-6)


def losses(error: list[float], sigmas: list[float] | None = None, **settings: object):
    """Losses of samples whose every element is off by the same number."""
    levels = torch.tensor(sigmas or [0.5] * len(error))
    velocity = torch.tensor(error).view(-1, 1, 1, 1).expand(-1, 16, 2, 2)
    found = sample_losses(velocity, torch.zeros(1, 16, 2, 2), levels, LossConfig(**settings))
    return found.tolist()


def test_a_masked_loss_is_the_mean_over_what_the_mask_leaves():
    velocity = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]]]).expand(
        3, 2, 2, 2
    )
    masks = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0]] * 2])
    found = sample_losses(velocity, torch.zeros(()), torch.ones(3), LossConfig(), masks)
    # Of the two channels: (1 * (1 + 0) + 0.5 * (4 + 0)) / (2 * 1.5); everything; nothing.
    assert found.tolist() == pytest.approx([1.0, (1 + 4 + 9 + 16 + 4) / 8, 0.0])


@pytest.mark.parametrize("weighting", ["none", "sigma_sqrt"])
@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_where_the_mask_is_black_there_is_no_gradient(kind, weighting):
    velocity = torch.randn(2, 16, 4, 4, generator=generator(), requires_grad=True)
    masks = torch.zeros(2, 4, 4)
    masks[0, 1:3, 2] = 0.3
    config = LossConfig(kind=kind, weighting=weighting)
    sample_losses(velocity, torch.zeros(()), torch.full((2,), 1e-3), config, masks).sum().backward()
    assert velocity.grad is not None
    learnt = velocity.grad.abs().amax(1) > 0
    assert torch.equal(learnt, masks > 0)
    assert velocity.grad.isfinite().all()


def test_the_loss_of_a_sample_is_its_own_mean_square_in_float32():
    target = torch.zeros(2, 16, 2, 2)
    velocity = torch.stack([torch.full((16, 2, 2), 2.0), torch.full((16, 2, 2), 0.5)]).bfloat16()
    found = sample_losses(velocity, target, torch.ones(2), LossConfig())
    assert found.tolist() == [4.0, 0.25]


def test_every_loss_is_its_formula():
    error, turn = 0.7, 0.1
    smooth = 2 * (math.sqrt(error**2 + turn**2) - turn)
    expected = {"l2": 0.49, "l1": 0.7, "huber": turn * smooth, "smooth_l1": smooth}
    assert expected.keys() == LOSSES.keys()
    for kind, loss in expected.items():
        settings = {"kind": kind, "huber_c": turn, "huber_schedule": "constant"}
        assert losses([error], **settings) == pytest.approx([loss])


def test_a_huber_loss_is_square_for_small_errors_and_linear_for_large_ones():
    settings = {"kind": "huber", "huber_c": 0.1, "huber_schedule": "constant"}
    assert losses([1e-3], **settings) == pytest.approx([1e-6], rel=1e-3)
    assert losses([50.0], **settings) == pytest.approx([2 * 0.1 * 50], rel=1e-2)


@pytest.mark.parametrize(
    ("schedule", "turns"),
    [
        ("constant", [0.2, 0.2, 0.2]),
        ("exponential", [1.0, math.sqrt(0.1) * 1.0, 0.1]),
        ("snr", [1.0, 0.9 / 4 + 0.1, 0.1]),
    ],
)
def test_the_turn_of_a_huber_loss_follows_its_schedule(schedule, turns):
    c = 0.2 if schedule == "constant" else 0.1
    config = LossConfig(kind="huber", huber_schedule=schedule, huber_c=c)
    found = huber_turn(torch.tensor([0.0, 0.5, 1.0]), config)
    assert found.tolist() == pytest.approx(turns)
    doubled = LossConfig(kind="huber", huber_schedule=schedule, huber_c=c, huber_scale=2.0)
    assert torch.allclose(huber_turn(torch.tensor([0.0, 0.5, 1.0]), doubled), 2 * found)


def test_a_weighting_multiplies_each_samples_loss_by_its_noise_level():
    levels = [0.25, 0.5, 1.0]
    assert losses([1.0] * 3, levels, weighting="sigma_sqrt") == pytest.approx([16.0, 4.0, 1.0])
    cosmap = [2 / (math.pi * (1 - 2 * s + 2 * s * s)) for s in levels]
    assert losses([1.0] * 3, levels, weighting="cosmap") == pytest.approx(cosmap)
    assert losses([1.0] * 3, levels) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "mean", "quantiles"),
    [
        # Of the sigmoid of a standard normal: quantiles are sigmoids of the normal's.
        ({}, 0.5, {0.1: 0.217, 0.5: 0.5, 0.9: 0.783}),
        ({"shift": 3.0}, 0.713, {0.1: 0.454, 0.5: 0.75, 0.9: 0.915}),
        ({"mean": 1.0}, 0.697, {0.1: 0.430, 0.5: 0.731, 0.9: 0.907}),
        ({"distribution": "uniform"}, 0.5, {0.1: 0.1, 0.5: 0.5, 0.9: 0.9}),
        ({"distribution": "uniform", "shift": 3.0}, 0.676, {0.1: 0.25, 0.5: 0.75, 0.9: 0.964}),
        ({"distribution": "uniform", "lowest": 0.2, "highest": 0.6}, 0.4, {0.5: 0.4, 0.9: 0.56}),
        ({"distribution": "mode", "mode_scale": 0.0}, 0.5, {0.1: 0.1, 0.9: 0.9}),
        # The map of 0.1 and of 0.9 at scale 1.29: u + 1.29 (cos^2(pi u / 2) - 1 + u).
        ({"distribution": "mode"}, 0.5, {0.1: 0.197, 0.5: 0.5, 0.9: 0.803}),
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


def test_the_shift_by_size_is_that_of_flux():
    # 256 and 4096 tokens are 32 x 32 and 128 x 128 latent pixels.
    assert size_shift(32, 32) == pytest.approx(math.exp(0.5))
    assert size_shift(128, 128) == pytest.approx(math.exp(1.15))
    large = sampled(size=128, shift_by_size=True)
    assert torch.allclose(large, sampled(size=128, shift=math.exp(1.15)))
    assert large.mean() > sampled(size=32, shift_by_size=True).mean()


@given(shift=st.floats(0.1, 10.0), sigma=st.floats(0.0, 1.0))
def test_a_shift_keeps_the_ends_and_is_undone_by_its_inverse(shift, sigma):
    sigmas = torch.tensor([0.0, sigma, 1.0], dtype=torch.float64)
    shifted = shift_sigmas(sigmas, shift)
    assert shifted[0] == 0
    assert shifted[2].item() == pytest.approx(1)
    assert torch.allclose(shift_sigmas(shifted, 1 / shift), sigmas, atol=1e-12)


SHAPE = (64, 16, 24, 40)


def test_plain_noise_is_standard_normal_and_the_same_for_input_and_target():
    noise = sample_noise(SHAPE, NoiseConfig(), generator())
    assert noise.input is noise.target
    assert noise.target.mean().item() == pytest.approx(0, abs=3e-3)
    assert noise.target.std().item() == pytest.approx(1, abs=3e-3)


def test_an_offset_moves_whole_channels_by_its_strength():
    noise = sample_noise(SHAPE, NoiseConfig(offset=0.5), generator()).target
    plain = sample_noise(SHAPE, NoiseConfig(), generator()).target
    moved = noise - plain
    assert moved.flatten(2).std(2).max() < 1e-5
    assert moved.mean((2, 3)).std().item() == pytest.approx(0.5, rel=0.05)


def test_a_random_offset_is_weaker_on_average():
    strengths = [
        (
            sample_noise((8, 16, 4, 4), NoiseConfig(offset=1.0, offset_random=True), generator(s))
            .target.mean((2, 3))
            .std()
            .item()
        )
        for s in range(40)
    ]
    assert 0.3 < sum(strengths) / len(strengths) < 0.75
    assert max(strengths) > 2 * min(strengths)


def test_noise_of_several_resolutions_keeps_its_variance_and_gains_coarse_structure():
    config = NoiseConfig(multires_iterations=6, multires_discount=0.5)
    noise = sample_noise(SHAPE, config, generator()).target
    plain = sample_noise(SHAPE, NoiseConfig(), generator()).target
    assert noise.std().item() == pytest.approx(1, abs=1e-3)

    def coarse(values: torch.Tensor) -> float:
        return torch.nn.functional.avg_pool2d(values, 8).std().item()

    assert coarse(noise) > 1.5 * coarse(plain)


def test_input_noise_leaves_the_target_alone():
    noise = sample_noise(SHAPE, NoiseConfig(input_gamma=0.3), generator())
    plain = sample_noise(SHAPE, NoiseConfig(), generator())
    assert torch.equal(noise.target, plain.target)
    assert (noise.input - noise.target).std().item() == pytest.approx(0.3, rel=0.02)


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    shape, config = torch.Size((2, 16, 4, 6)), ObjectiveConfig()
    first, again, other = draw(shape, config, 7), draw(shape, config, 7), draw(shape, config, 8)
    assert torch.equal(first.noise.target, again.noise.target)
    assert torch.equal(first.sigmas, again.sigmas)
    assert not torch.equal(first.noise.target, other.noise.target)
    assert first.noise.target.dtype == first.sigmas.dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (SigmaConfig, {"distribution": "cubic"}),
        (SigmaConfig, {"shift": 0.0}),
        (SigmaConfig, {"shift": math.nan}),
        (SigmaConfig, {"sigmoid_scale": 0.0}),
        (SigmaConfig, {"lowest": 0.6, "highest": 0.5}),
        (SigmaConfig, {"highest": 1.5}),
        (NoiseConfig, {"offset": -1.0}),
        (LossConfig, {"kind": "l3"}),
        (LossConfig, {"huber_schedule": "cubic"}),
        (LossConfig, {"weighting": "cubic"}),
        (LossConfig, {"huber_c": 0.0}),
    ],
)
def test_impossible_settings_are_refused(config, settings):
    with pytest.raises(ConfigError):
        config(**settings)
