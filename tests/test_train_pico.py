"""The tool that makes the embedded model: its parts, small, from painted pictures to a bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, run_apart
from safetensors.torch import load_file

from anima_pipe.encoders import load_vae

sys.path.append(str(ROOT / "tools"))
from pico.pictures import vae_pictures
from pico.vae import TrainableVae, VaeTraining, save_vae, train_vae

SMALL = VaeTraining(width=4, steps=4, batch=2, crop=32)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return vae_pictures(6, 64, seed=1)


def _pixels(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures / 127.5 - 1).float().permute(0, 3, 1, 2)


def test_the_saved_vae_is_the_trained_one_with_latents_of_unit_size(
    pictures: np.ndarray, tmp_path: Path
) -> None:
    model = train_vae(SMALL, pictures, tmp_path)

    save_vae(model, pictures, tmp_path / "vae.safetensors", torch.float32)

    loaded = load_vae(tmp_path / "vae.safetensors")
    pixels = _pixels(pictures)
    latents = loaded.encode(pixels)
    with torch.no_grad():
        expected = model.decode(model.encode(pixels)[0])
    channels = latents.transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 1e-3
    assert (channels.std(1) - 1).abs().max() < 1e-3
    assert (loaded.decode(latents) - expected).abs().max() < 1e-4


def test_an_interrupted_vae_goes_on_as_if_it_had_not_been(
    pictures: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pico.vae.REPORT_EVERY", 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()

    expected = train_vae(SMALL, pictures, whole).state_dict()
    calls, loss = 0, TrainableVae.loss

    def interrupted(self: TrainableVae, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return loss(self, images)

    with monkeypatch.context() as patched:
        patched.setattr(TrainableVae, "loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_vae(SMALL, pictures, cut)
    resumed = train_vae(SMALL, pictures, cut).state_dict()

    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_the_tool_makes_a_bundle_and_measures_it(tmp_path: Path) -> None:
    """As one calls it, with next to no training: everything is there and the figures are told."""
    small = ("--vae_pictures", "8", "--vae_steps", "4", "--pictures", "12", "--steps", "2")

    run_apart(
        *(sys.executable, "tools/train_pico.py", str(tmp_path), *small, "--batch", "4"),
        *("--prompts", "2"),
    ).ok()

    figures = json.loads((tmp_path / "bundle" / "figures.json").read_text())
    assert 0 <= figures["named_and_found"] <= 1
    assert figures["bundle_bytes"] < 16e6
    assert (tmp_path / "sheet.png").stat().st_size > 0
    weights = load_file(tmp_path / "bundle" / "transformer.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
