"""Offsets of the noise levels of some samples: Kohya's custom_attributes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from anima_pipe.kohya.dataset_toml import load_dataset_config
from anima_pipe.kohya.objective import objective_config
from anima_pipe.kohya.resolve import resolve
from anima_pipe.objective.flow_loss import ObjectiveConfig, draw
from anima_pipe.objective.sigmas import SigmaConfig, sample_sigmas

MANY = 200_000


def sampled(
    offset: float | None, *, shift: float = 1.0, sigmoid_scale: float = 1.0
) -> torch.Tensor:
    offsets = None if offset is None else torch.full((MANY,), offset)
    generator = torch.Generator().manual_seed(0)
    config = SigmaConfig(shift=shift, sigmoid_scale=sigmoid_scale)
    return sample_sigmas((MANY, 16, 64, 64), config, generator, offsets)


@pytest.mark.parametrize(
    ("shift", "offset", "mean", "median"),
    [
        # Under shift 3 as Kohya's documentation has them. Without a shift the medians are those
        # that it calls means: the sigmoid of the offset.
        (1.0, -0.5, 0.399, 0.378),
        (1.0, 0.5, 0.601, 0.622),
        (3.0, -0.5, 0.621, 0.645),
        (3.0, 0.0, 0.714, 0.750),
        (3.0, 0.5, 0.793, 0.832),
    ],
)
def test_an_offset_moves_the_noise_levels_of_its_samples(
    shift: float, offset: float, mean: float, median: float
):
    sigmas = sampled(offset, shift=shift)
    assert sigmas.mean().item() == pytest.approx(mean, abs=2e-3)
    assert sigmas.median().item() == pytest.approx(median, abs=3e-3)


def test_an_offset_is_multiplied_by_sigmoid_scale():
    normal = torch.logit(sampled(0.0).double())
    expected = torch.sigmoid(1.3 * (normal + 0.4))
    assert torch.allclose(sampled(0.4, sigmoid_scale=1.3).double(), expected, atol=1e-5)


def test_no_offset_draws_what_is_drawn_without_the_attribute():
    assert torch.equal(sampled(0.0), sampled(None))


@pytest.mark.parametrize("sampling", ["uniform", "sigma"])
def test_an_offset_is_without_effect_where_kohya_ignores_it(sampling: str):
    given = {"timestep_sampling": sampling, "weighting_scheme": "logit_normal"}
    config = objective_config(resolve("train", given))
    shape = torch.Size((4, 16, 8, 8))
    moved = draw(shape, config, 1, torch.full((4,), 2.0))
    assert torch.equal(moved.sigmas, draw(shape, config, 1).sigmas)


def test_each_sample_of_a_batch_takes_its_own_offset():
    shape = torch.Size((2, 16, 8, 8))
    plain = draw(shape, ObjectiveConfig(), 1).sigmas
    moved = draw(shape, ObjectiveConfig(), 1, torch.tensor([0.0, 0.5])).sigmas
    assert moved[0] == plain[0]
    assert torch.logit(moved[1]) - torch.logit(plain[1]) == pytest.approx(0.5, abs=1e-5)


def test_the_innermost_table_of_attributes_wins_whole(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).mkdir()
    outer = {"custom_attributes": {"timestep_sampling": {"offset": 0.25}}}
    subsets: list[dict[str, object]] = [
        {"image_dir": "a"},
        {"image_dir": "b", "custom_attributes": {"timestep_sampling": {"offset": -0.5}}},
        {"image_dir": "c", "custom_attributes": {}},
    ]
    file = tmp_path / "dataset.json"
    dataset = {"resolution": 64, "subsets": subsets}
    file.write_text(json.dumps({"general": outer, "datasets": [dataset]}))
    (loaded,) = load_dataset_config(file, {})
    assert [subset.sigma_offset for subset in loaded.subsets] == [0.25, -0.5, 0.0]
