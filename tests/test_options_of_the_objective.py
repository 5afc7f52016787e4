"""What the options of noise levels, noise and loss do, from the option to the numbers drawn."""

from __future__ import annotations

import pytest
import torch

from anima_pipe.kohya.objective import objective_config
from anima_pipe.kohya.resolve import resolve
from anima_pipe.objective.flow_loss import draw, sample_losses

SHAPE = torch.Size((20_000, 1, 4, 4))
Options = dict[str, object]


def sigmas(options: Options, shape: torch.Size = SHAPE) -> torch.Tensor:
    """Noise levels, many of them, as a run with these options draws them."""
    return draw(shape, objective_config(resolve("train", options)), seed=1).sigmas


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        # Levels below which a tenth, a half and nine tenths of the draws lie.
        ({}, (0.217, 0.5, 0.783)),
        ({"timestep_sampling": "uniform"}, (0.1, 0.5, 0.9)),
        ({"sigmoid_scale": 2.0}, (0.072, 0.5, 0.928)),
        ({"timestep_sampling": "shift", "discrete_flow_shift": 3.0}, (0.454, 0.75, 0.915)),
        ({"timestep_sampling": "uniform", "min_timestep": 500}, (0.55, 0.75, 0.95)),
        ({"timestep_sampling": "uniform", "max_timestep": 500}, (0.05, 0.25, 0.45)),
        (
            {"timestep_sampling": "sigma", "weighting_scheme": "logit_normal", "logit_mean": 1.0},
            (0.093, 0.269, 0.570),
        ),
        (
            {"timestep_sampling": "sigma", "weighting_scheme": "logit_normal", "logit_std": 2.0},
            (0.072, 0.5, 0.928),
        ),
        (
            {"timestep_sampling": "sigma", "weighting_scheme": "mode", "mode_scale": 1.29},
            (0.197, 0.5, 0.803),
        ),
        (
            {"timestep_sampling": "sigma", "weighting_scheme": "mode", "mode_scale": 0.0},
            (0.1, 0.5, 0.9),
        ),
    ],
)
def test_noise_levels_are_drawn_as_the_options_say(options: Options, levels: tuple[float, ...]):
    drawn = sigmas(options)

    found = [drawn.quantile(share).item() for share in (0.1, 0.5, 0.9)]
    assert found == pytest.approx(levels, abs=0.02)


def test_flux_shift_draws_more_noise_for_larger_pictures():
    options: Options = {"timestep_sampling": "flux_shift"}

    small, large = (sigmas(options, torch.Size((2_000, 1, side, side))) for side in (32, 128))
    assert large.mean() > small.mean() + 0.02


def noises(options: Options, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of the input and of the target, less what a run without options draws."""
    shape = torch.Size((8, 16, 16, 16))
    noise = draw(shape, objective_config(resolve("train", options)), seed).noise
    plain = draw(shape, objective_config(resolve("train", {})), seed).noise
    return noise.input - plain.input, noise.target - plain.target


def test_noise_offset_adds_one_number_to_each_channel():
    _, added = noises({"noise_offset": 0.5})

    assert added.flatten(2).std(2).max() < 1e-5
    assert added.mean((2, 3)).std().item() == pytest.approx(0.5, rel=0.25)


@pytest.mark.parametrize(
    ("option", "random"),
    [
        ("noise_offset", "noise_offset_random_strength"),
        ("ip_noise_gamma", "ip_noise_gamma_random_strength"),
    ],
)
def test_a_random_strength_is_another_one_in_each_batch_and_never_more(option: str, random: str):
    def strengths(**more: object) -> list[float]:
        return [noises({option: 1.0, **more}, seed)[0].std().item() for seed in range(8)]

    fixed, drawn = strengths(), strengths(**{random: True})
    assert max(fixed) < 1.3 * min(fixed)
    assert max(drawn) > 2 * min(drawn)
    assert sum(drawn) < 0.9 * sum(fixed)


def test_multires_noise_adds_coarse_layers_each_weaker_by_the_discount():
    def coarse(**options: object) -> float:
        _, added = noises({"multires_noise_iterations": 4, **options})
        return torch.nn.functional.avg_pool2d(added, 8).std().item()

    assert coarse(multires_noise_discount=0.8) > 2 * coarse(multires_noise_discount=0.2) > 0


def test_ip_noise_gamma_adds_noise_to_the_input_alone():
    to_input, to_target = noises({"ip_noise_gamma": 0.3})

    assert to_input.std().item() == pytest.approx(0.3, rel=0.05)
    assert to_target.abs().max() == 0


def losses(options: Options, error: float = 0.7) -> list[float]:
    """Losses at three noise levels of a velocity that is off by the same number everywhere."""
    config = objective_config(resolve("train", options)).loss
    velocity = torch.full((3, 1, 2, 2), error)
    levels = torch.tensor([0.25, 0.5, 1.0])
    return sample_losses(velocity, torch.zeros_like(velocity), levels, config).tolist()


HUBER = {"loss_type": "huber", "huber_schedule": "constant"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss_type": "l2"}, [0.49] * 3),
        ({"loss_type": "l1"}, [0.7] * 3),
        # 2 c (sqrt(error^2 + c^2) - c), which huber_c and huber_scale move together.
        (HUBER | {"huber_c": 0.1}, [0.1214] * 3),
        (HUBER | {"huber_c": 0.2}, [0.2112] * 3),
        (HUBER | {"huber_c": 0.1, "huber_scale": 2.0}, [0.2112] * 3),
        (HUBER | {"loss_type": "smooth_l1"}, [1.2142] * 3),
        ({"weighting_scheme": "sigma_sqrt"}, [0.49 * 16, 0.49 * 4, 0.49]),
    ],
)
def test_the_loss_is_the_one_that_the_options_name(options: Options, expected: list[float]):
    assert losses(options) == pytest.approx(expected, rel=1e-3)


def test_huber_schedule_makes_clean_pictures_count_by_the_square():
    following = losses({"loss_type": "huber", "huber_schedule": "snr"})

    assert following[0] > 2 * following[2]
    assert losses(HUBER)[0] == losses(HUBER)[2]
