"""--show_timesteps: the chart of noise levels says what training would draw and weigh."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from commands import Ended, anima_pipe, assert_one_error, files_in
from PIL import Image

from anima_pipe.objective.flow_loss import LossConfig, ObjectiveConfig
from anima_pipe.objective.noise_chart import BINS, NoiseChart, chart_as_picture, chart_noise_levels
from anima_pipe.objective.sigmas import SigmaConfig

SQUARE = (1024, 1024)


def chart_of(sigmas: SigmaConfig, weighting: str = "none", **settings: float) -> NoiseChart:
    objective = ObjectiveConfig(sigmas=sigmas, loss=LossConfig(weighting=weighting))
    return chart_noise_levels(objective, SQUARE, **settings)


def test_the_chart_of_uniform_levels_is_flat():
    chart = chart_of(SigmaConfig(distribution="uniform"))
    assert chart.shares == pytest.approx([1 / BINS] * BINS, abs=2e-3)
    assert chart.quantiles == pytest.approx([0.1, 0.5, 0.9], abs=3e-3)
    assert chart.weights == (1.0,) * BINS
    assert chart.weighted_shares == pytest.approx(chart.shares)


def test_the_chart_of_a_shifted_sigmoid_has_its_moments():
    chart = chart_of(SigmaConfig(shift=3.0))
    assert chart.mean == pytest.approx(0.713, abs=2e-3)
    assert chart.quantiles == pytest.approx([0.454, 0.75, 0.915], abs=3e-3)
    assert sum(chart.shares) == pytest.approx(1)


def test_a_weighting_shows_in_the_weights_and_in_what_training_sees():
    chart = chart_of(SigmaConfig(distribution="uniform"), weighting="cosmap")
    middle = BINS // 2
    # At sigma 0.5 the density of the cosine schedule is 4 / pi, at the ends half of that.
    assert chart.weights[middle] == pytest.approx(4 / math.pi, abs=5e-3)
    assert chart.weights[0] == pytest.approx(2 / math.pi / (1 - 0.05), rel=2e-2)
    assert chart.weighted_shares[middle] == pytest.approx(2 * chart.weighted_shares[0], rel=0.1)


def test_a_bin_that_nothing_falls_into_is_weighed_at_its_middle():
    half = SigmaConfig(distribution="uniform", lowest=0.5)
    chart = chart_of(half, weighting="sigma_sqrt")
    assert chart.shares[0] == 0
    assert chart.weights[0] == pytest.approx((0.5 / BINS) ** -2, rel=1e-4)


def test_the_picture_has_a_bar_for_every_bin_and_leaves_empty_ones_out():
    picture = chart_as_picture(chart_of(SigmaConfig(distribution="uniform", lowest=0.5)), "half")
    blue = (0x7A, 0xA6, 0xD8)
    columns = range(picture.width)
    bars = [
        x for x in columns if blue in {picture.getpixel((x, y)) for y in range(100, picture.height)}
    ]
    assert min(bars) > picture.width / 2
    assert len(bars) > 0.35 * picture.width


def show(folder: Path, **values: object) -> Ended:
    """The command with nothing but the objective's options; no model's files are named."""
    bare = dict.fromkeys(("pretrained_model_name_or_path", "vae", "qwen3", "t5_tokenizer_dir"))
    return anima_pipe("train", folder / "summary.json", **bare, **values)


def test_the_command_shows_the_noise_levels_and_ends(tmp_path: Path):
    ended = show(tmp_path, show_timesteps="console", timestep_sampling="shift").ok()
    assert ended.summary is not None
    assert ended.summary["mean"] == pytest.approx(0.5, abs=5e-3)
    assert ended.printed.startswith("mean 0.499; 10% below 0.217")
    assert "0.45 - 0.50" in ended.printed
    assert ended.printed.count("#" * 39) >= 1
    assert files_in(tmp_path) == {"summary.json"}


def test_the_command_draws_the_noise_levels_into_the_output_folder(tmp_path: Path):
    show(tmp_path, show_timesteps="image", output_dir=tmp_path / "out").ok()
    assert files_in(tmp_path / "out") == {"fox-timesteps.png"}
    with Image.open(tmp_path / "out" / "fox-timesteps.png") as picture:
        assert picture.size == (800, 440)
    assert_one_error(show(tmp_path, show_timesteps="image"), "output_dir")


def test_the_chart_takes_the_size_and_the_offset_asked_for(tmp_path: Path):
    def mean(**values: object) -> float:
        ended = show(tmp_path, show_timesteps="console", timestep_sampling="flux_shift", **values)
        assert ended.ok().summary is not None
        return ended.summary["mean"]

    plain = mean()
    assert mean(show_timesteps_resolution="512,512") < plain - 0.05
    assert mean(show_timesteps_offset=-0.5) < plain - 0.05
    # At 256 tokens FLUX's shift is e^0.5: the median is its image of one half.
    small = (
        show(
            tmp_path,
            show_timesteps="console",
            timestep_sampling="flux_shift",
            show_timesteps_resolution=256,
        )
        .ok()
        .summary
    )
    assert small is not None
    assert small["quantiles"][1] == pytest.approx(1 / (1 + math.exp(-0.5)), abs=3e-3)


def test_an_offset_that_has_no_effect_is_warned_of(tmp_path: Path):
    values = {"show_timesteps_offset": 0.5, "timestep_sampling": "uniform"}
    ended = show(tmp_path, show_timesteps="console", **values).ok()
    assert "show_timesteps_offset (command line) has no effect beside" in ended.said


@pytest.mark.parametrize("value", ["plot", "images"])
def test_another_way_to_show_them_is_refused(value: str, tmp_path: Path):
    assert_one_error(show(tmp_path, show_timesteps=value), "console, image")
