"""The image VAE gives what the video VAE gives for one frame."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file

from anima_pipe.encoders import load_vae

GOLDEN = Path(__file__).parent / "golden" / "vae_a.safetensors"


def relative_difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    assert got.shape == wanted.shape
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def golden_weights(prefix: str = "") -> dict[str, torch.Tensor]:
    stored = load_file(GOLDEN)
    return {prefix + name[2:]: tensor for name, tensor in stored.items() if name.startswith("w.")}


def random_video_vae(width: int) -> AutoencoderKLQwenImage:
    """Diffusers' class with every weight, gains and biases too, drawn afresh."""
    torch.manual_seed(width)
    vae = AutoencoderKLQwenImage(base_dim=width).eval()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            center = 1.0 if name.endswith("gamma") else 0.0
            parameter.add_(torch.randn_like(parameter) * 0.05).add_(center - parameter.mean())
    return vae


def saved(vae: AutoencoderKLQwenImage, folder: Path) -> Path:
    path = folder / "vae.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in vae.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def golden_vae_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(golden_weights(), path)
    return path


@pytest.fixture(scope="module")
def golden_vae(golden_vae_path):
    return load_vae(golden_vae_path)


@pytest.mark.parametrize("index", [0, 1])
def test_the_posterior_mean_is_the_golden_one(golden_vae, index):
    golden = load_file(GOLDEN)
    mean = golden_vae.posterior_mean(golden[f"image.{index}"])
    assert relative_difference(mean, golden[f"posterior_mean.{index}"]) < 2e-5


@pytest.mark.parametrize("index", [0, 1])
def test_encoding_gives_the_golden_latents(golden_vae, index):
    golden = load_file(GOLDEN)
    latents = golden_vae.encode(golden[f"image.{index}"])
    assert relative_difference(latents, golden[f"latent.{index}"]) < 2e-5


@pytest.mark.parametrize("index", [0, 1])
def test_decoding_gives_the_golden_pictures(golden_vae, index):
    golden = load_file(GOLDEN)
    images = golden_vae.decode(golden[f"latent.{index}"])
    assert relative_difference(images, golden[f"decoded.{index}"]) < 2e-5


# The second picture is cut into two bands of rows at full resolution.
@pytest.mark.parametrize(("width", "size"), [(8, (2, 3, 48, 96)), (32, (1, 3, 512, 192))])
def test_it_agrees_with_diffusers_on_weights_drawn_afresh(tmp_path, width, size):
    theirs = random_video_vae(width)
    ours = load_vae(saved(theirs, tmp_path))
    images = torch.rand(size) * 2 - 1
    with torch.no_grad():
        posterior = theirs.encode(images.unsqueeze(2)).latent_dist
        latents = torch.randn(posterior.mean.shape)
        decoder_input = latents * torch.tensor(theirs.config.latents_std).view(1, -1, 1, 1, 1)
        decoder_input += torch.tensor(theirs.config.latents_mean).view(1, -1, 1, 1, 1)
        # Diffusers clamps what it decodes; its parts do not.
        pictures = theirs.decoder(
            theirs.post_quant_conv(decoder_input), feat_cache=[None] * 64, feat_idx=[0]
        )
    assert relative_difference(ours.posterior_mean(images), posterior.mean.squeeze(2)) < 2e-5
    assert relative_difference(ours.decode(latents.squeeze(2)), pictures.squeeze(2)) < 2e-5


def test_the_latents_are_normalised_by_diffusers_own_constants(golden_vae):
    theirs = random_video_vae(8)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    mean = torch.tensor(theirs.config.latents_mean).view(1, -1, 1, 1)
    std = torch.tensor(theirs.config.latents_std).view(1, -1, 1, 1)
    wanted = (golden_vae.posterior_mean(images) - mean) / std
    assert relative_difference(golden_vae.encode(images), wanted) < 1e-6


def test_each_picture_of_a_batch_is_encoded_as_if_alone(golden_vae):
    images = torch.rand(3, 3, 40, 24) * 2 - 1
    together = golden_vae.encode(images)
    alone = torch.cat([golden_vae.encode(image.unsqueeze(0)) for image in images])
    assert relative_difference(together, alone) < 1e-5


@pytest.mark.parametrize("tile", [40, 96])
def test_decoding_in_tiles_changes_only_the_rounding(golden_vae, tile):
    latents = torch.randn(2, 16, 20, 30)
    whole = golden_vae.decode(latents)
    assert relative_difference(golden_vae.decode(latents, tile=tile), whole) < 1e-5


def test_bfloat16_comes_close_and_returns_float32_latents(golden_vae_path, golden_vae):
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    latents = load_vae(golden_vae_path, dtype=torch.bfloat16).encode(images)
    assert latents.dtype == torch.float32
    assert relative_difference(latents, golden_vae.encode(images)) < 0.03


def test_it_is_frozen_and_its_latents_may_be_trained_on(golden_vae):
    assert not golden_vae.training
    assert not any(parameter.requires_grad for parameter in golden_vae.parameters())
    weight = torch.ones(1, requires_grad=True)
    (golden_vae.encode(torch.zeros(1, 3, 8, 8)) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("size", [(1, 3, 60, 64), (1, 3, 64, 60), (3, 64, 64), (1, 4, 64, 64)])
def test_pictures_of_impossible_shapes_are_refused(golden_vae, size):
    with pytest.raises(ValueError, match=r"images"):
        golden_vae.encode(torch.zeros(size))


def test_bytes_are_not_taken_for_pixels_between_minus_one_and_one(golden_vae):
    with pytest.raises(ValueError, match="uint8"):
        golden_vae.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_a_tile_that_cuts_through_latents_is_refused(golden_vae):
    with pytest.raises(ValueError, match="100"):
        golden_vae.decode(torch.zeros(1, 16, 64, 64), tile=100)
