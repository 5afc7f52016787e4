"""Sampling against the golden vectors and against a solution known in closed form."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_pipe.drawing.denoise import euler, guided, simple_schedule
from anima_pipe.model import load_transformer

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["anima_a", "anima_b"])
def test_the_schedule_is_that_of_the_reference(name):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    assert torch.allclose(simple_schedule(10, 3.0), golden["sample_sigmas"], atol=1e-6)


def test_a_schedule_falls_from_noise_to_nothing():
    sigmas = simple_schedule(30)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert len(sigmas) == 31
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("name", ["anima_a", "anima_b"])
@pytest.mark.parametrize("guidance", [1, 4])
def test_euler_samples_are_those_of_the_reference(name, guidance, tmp_path):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key[2:]: value for key, value in golden.items() if key.startswith("w.")}
    save_file(weights, tmp_path / "model.safetensors")
    model = load_transformer(tmp_path / "model.safetensors")

    def velocity_of(row):
        context = golden["condition"][row : row + 1]
        return lambda latents, sigma: model(latents, sigma, context)

    velocity = guided(velocity_of(0), velocity_of(1), guidance)
    with torch.inference_mode():
        sample = euler(golden["sample_noise"], simple_schedule(10, 3.0), velocity)
    expected = golden[f"sample_cfg{guidance}"]
    assert (sample - expected).abs().max() < 2e-4 * expected.abs().max()


def test_a_straight_flow_is_solved_exactly_in_any_number_of_steps():
    clean, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    for steps in (1, 3, 30):
        found = euler(noise, simple_schedule(steps), lambda _latents, _sigma: noise - clean)
        assert torch.allclose(found, clean, atol=1e-5)


def test_guidance_of_one_never_asks_for_the_negative():
    def never(_latents, _sigma):
        raise AssertionError("the negative prompt costs nothing at guidance 1")

    positive = guided(lambda latents, _sigma: latents, never, 1.0)
    assert positive(torch.ones(1), torch.ones(1)) == 1
