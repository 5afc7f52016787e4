"""What the options of noise levels, noise and loss do, from the option to the numbers drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from anima_pipe.kohya.objective import objective_config
from anima_pipe.kohya.resolve import resolve
from anima_pipe.objective.flow_loss import draw, sample_losses
from anima_pipe.objective.noise import sample_noise

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


NORMAL = (-1.2815516, 0.0, 1.2815516)
"""Below which a tenth, a half and nine tenths of a standard normal lie."""
UNIFORM = (0.1, 0.5, 0.9)
SHARES = torch.tensor(UNIFORM)


def from_normal(mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> list[float]:
    """The levels of a shifted sigmoid of a normal, one number at a time."""
    return shifted([1 / (1 + math.exp(-(mean + std * z))) for z in NORMAL], shift)


def shifted(levels: Sequence[float], shift: float) -> list[float]:
    """As Kohya writes it: e^mu / (e^mu + 1 / t - 1), with the shift for e^mu."""
    return [shift / (shift + 1 / level - 1) for level in levels]


def within(levels: Sequence[float], lowest: float, highest: float) -> list[float]:
    return [lowest + (highest - lowest) * level for level in levels]


RANGE: Options = {"min_timestep": 200, "max_timestep": 600}
THREE: Options = {"discrete_flow_shift": 3.0}


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ({"sigmoid_scale": 1.3}, from_normal(std=1.3)),
        (
            {"timestep_sampling": "shift", "sigmoid_scale": 1.3, **THREE},
            from_normal(std=1.3, shift=3.0),
        ),
        (
            {"timestep_sampling": "shift", **THREE, **RANGE},
            within(from_normal(shift=3.0), 0.2, 0.6),
        ),
        (RANGE, within(from_normal(), 0.2, 0.6)),
        # Kohya's shift is without effect on these two, the seed's acts on all.
        (THREE, from_normal()),
        ({"timestep_sampling": "uniform", **THREE}, UNIFORM),
        ({"anima_flow_shift": 3.0}, from_normal(shift=3.0)),
        (
            {"anima_timestep_sampling": "uniform", "anima_flow_shift": 3.0},
            shifted(UNIFORM, 3.0),
        ),
        (
            {
                "anima_timestep_sampling": "logit_normal",
                "anima_sigmoid_scale": 1.3,
                "anima_flow_shift": 3.0,
            },
            from_normal(std=1.3, shift=3.0),
        ),
        # Under sigma the shift acts whatever the scheme; the time of the schemes runs to clean.
        ({"timestep_sampling": "sigma", **THREE}, shifted(UNIFORM, 3.0)),
        (
            {"timestep_sampling": "sigma", "weighting_scheme": "cosmap", **THREE},
            shifted(UNIFORM, 3.0),
        ),
        (
            {
                "timestep_sampling": "sigma",
                "weighting_scheme": "logit_normal",
                "logit_mean": 0.5,
                "logit_std": 0.7,
                **THREE,
                **RANGE,
            },
            within(from_normal(mean=-0.5, std=0.7, shift=3.0), 0.2, 0.6),
        ),
        # A scheme of how levels are drawn is none under the others.
        ({"weighting_scheme": "logit_normal", "logit_mean": 2.0}, from_normal()),
        ({"weighting_scheme": "mode"}, from_normal()),
        ({"min_timestep": 500, "max_timestep": 500}, [0.5] * 3),
    ],
)
def test_options_of_noise_levels_act_together(options: Options, levels: Sequence[float]):
    assert sigmas(options).quantile(SHARES).tolist() == pytest.approx(levels, abs=0.012)


@pytest.mark.parametrize(
    ("height", "width", "shift"),
    [
        # The logarithm goes from 0.5 at 256 tokens of 2 x 2 to 1.15 at 4096.
        (32, 32, math.exp(0.5)),
        (128, 128, math.exp(1.15)),
        (32, 128, math.exp(0.5 + 0.65 * (1024 - 256) / 3840)),
        (130, 60, math.exp(0.5 + 0.65 * (65 * 30 - 256) / 3840)),
    ],
)
def test_flux_shift_shifts_by_the_size_of_the_picture(height: int, width: int, shift: float):
    options: Options = {"timestep_sampling": "flux_shift", "sigmoid_scale": 1.2}
    # Its own shift is the only one.
    for more in ({}, THREE):
        drawn = sigmas({**options, **more}, torch.Size((20_000, 0, height, width)))
        expected = from_normal(std=1.2, shift=shift)
        assert drawn.quantile(SHARES).tolist() == pytest.approx(expected, abs=0.012)


def noises(options: Options, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of the input and of the target, less what a run without options draws."""
    shape = torch.Size((8, 16, 16, 16))
    noise = draw(shape, objective_config(resolve("train", options)), seed).noise
    plain = draw(shape, objective_config(resolve("train", {})), seed).noise
    return noise.input - plain.input, noise.target - plain.target


@pytest.mark.parametrize("spelling", ["noise_offset", "anima_noise_offset"])
def test_noise_offset_adds_one_number_to_each_channel(spelling: str):
    _, added = noises({spelling: 0.5})

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


@pytest.mark.parametrize("size", [(24, 40), (2, 64), (5, 5)])
def test_multires_noise_is_the_sum_of_its_layers_brought_back_to_unit_variance(
    size: tuple[int, int],
):
    """The same draws added up one layer at a time, as Kohya's pyramid noise is described."""
    iterations, discount, (height, width) = 5, 0.6, size
    shape = torch.Size((3, 4, height, width))
    given: Options = {
        "multires_noise_iterations": iterations,
        "multires_noise_discount": discount,
    }
    found = sample_noise(shape, objective_config(resolve("train", given)).noise, generator())
    rng = generator()
    total = torch.randn(shape, generator=rng)
    for layer in range(iterations):
        coarser = (2 + 2 * torch.rand((), generator=rng).item()) ** layer
        rows, columns = max(1, int(height / coarser)), max(1, int(width / coarser))
        grid = torch.randn(3, 4, rows, columns, generator=rng)
        total += discount**layer * torch.nn.Upsample(size=size, mode="bilinear")(grid)
        if rows == 1 or columns == 1:  # Kohya ends where either side has come down to one.
            break
    assert torch.allclose(found.target, total / total.std(), atol=1e-6)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


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


def huber(*turns: float) -> list[float]:
    """Kohya's pseudo-Huber loss of an error of 0.7 at each turn."""
    return [2 * turn * (math.sqrt(0.49 + turn**2) - turn) for turn in turns]


HUBER: Options = {"loss_type": "huber", "huber_schedule": "constant"}


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
        # The loss turns at 0.1 ** sigma, or (1 - 0.1) (1 - sigma) ** 2 + 0.1, times the scale.
        (HUBER | {"huber_schedule": "exponential"}, huber(0.1**0.25, 0.1**0.5, 0.1)),
        (
            HUBER | {"huber_schedule": "exponential", "huber_c": 0.2, "huber_scale": 0.5},
            huber(0.5 * 0.2**0.25, 0.5 * 0.2**0.5, 0.1),
        ),
        (HUBER | {"huber_schedule": "snr"}, huber(0.9 * 0.5625 + 0.1, 0.9 * 0.25 + 0.1, 0.1)),
        ({"weighting_scheme": "sigma_sqrt"}, [0.49 * 16, 0.49 * 4, 0.49]),
        (
            {"weighting_scheme": "cosmap"},
            [0.49 * 2 / math.pi / w for w in (0.625, 0.5, 1.0)],
        ),
        ({"weighting_scheme": "none"}, [0.49] * 3),
        ({"weighting_scheme": "logit_normal", "timestep_sampling": "sigma"}, [0.49] * 3),
        ({"weighting_scheme": "mode", "timestep_sampling": "sigma"}, [0.49] * 3),
    ],
)
def test_the_loss_is_the_one_that_the_options_name(options: Options, expected: list[float]):
    assert losses(options) == pytest.approx(expected, rel=1e-3)


def test_huber_schedule_makes_clean_pictures_count_by_the_square():
    following = losses({"loss_type": "huber", "huber_schedule": "snr"})

    assert following[0] > 2 * following[2]
    assert losses(HUBER)[0] == losses(HUBER)[2]
