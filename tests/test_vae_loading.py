"""Which files the VAE is loaded from, and what is said about the others."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_pipe.encoders import load_vae
from anima_pipe.errors import CheckpointError

GOLDEN = Path(__file__).parent / "golden" / "vae_a.safetensors"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    stored = load_file(GOLDEN)
    return {name[2:]: tensor for name, tensor in stored.items() if name.startswith("w.")}


@pytest.fixture
def write(tmp_path):
    def write_weights(weights: dict[str, torch.Tensor], name: str = "vae.safetensors") -> Path:
        path = tmp_path / name
        save_file(weights, path)
        return path

    return write_weights


def encodes_the_golden_picture(path: Path) -> bool:
    golden = load_file(GOLDEN)
    wanted = golden["latent.0"]
    return torch.allclose(load_vae(path).encode(golden["image.0"]), wanted, atol=2e-5, rtol=0)


def problem_with(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_vae(path)
    assert "\n" not in caught.value.problem
    return caught.value.problem


@pytest.mark.parametrize("prefix", ["vae.", "first_stage_model."])
def test_names_with_a_bundlers_prefix_are_understood(weights, write, prefix):
    path = write({prefix + name: tensor for name, tensor in weights.items()})
    assert encodes_the_golden_picture(path)


def test_a_file_without_the_temporal_convolutions_is_whole(weights, write):
    path = write({name: tensor for name, tensor in weights.items() if "time_conv" not in name})
    assert encodes_the_golden_picture(path)


def test_a_file_that_was_folded_before_is_understood(weights, write):
    path = write(
        {name: t[:, :, -1].contiguous() if t.ndim == 5 else t for name, t in weights.items()}
    )
    assert encodes_the_golden_picture(path)


@pytest.mark.parametrize("nested", [False, True])
def test_a_torch_file_of_tensors_is_read_without_running_anything(weights, tmp_path, nested):
    path = tmp_path / "Wan2.1_VAE.pth"
    torch.save({"state_dict": weights} if nested else weights, path)
    assert encodes_the_golden_picture(path)


def test_a_torch_file_with_code_in_it_is_refused(tmp_path):
    path = tmp_path / "vae.pth"
    torch.save(problem_with, path)
    assert str(path) in problem_with(path)


def test_what_happens_to_the_file_after_loading_does_not_matter(weights, write):
    path = write(weights)
    vae = load_vae(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    golden = load_file(GOLDEN)
    assert torch.allclose(vae.encode(golden["image.0"]), golden["latent.0"], atol=2e-5, rtol=0)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    assert "does not exist" in problem_with(tmp_path / "vae.safetensors")


def test_a_folder_is_refused_with_the_file_inside_it(weights, write):
    path = write(weights)
    with pytest.raises(CheckpointError) as caught:
        load_vae(path.parent)
    assert str(path) in caught.value.remedy


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_truncated_file_is_refused(weights, write, kept):
    path = write(weights)
    path.write_bytes(path.read_bytes()[:kept])
    assert str(path) in problem_with(path)


def test_a_text_file_is_refused(tmp_path):
    path = tmp_path / "vae.safetensors"
    path.write_text("<!doctype html> not found")
    assert "safetensors" in problem_with(path)


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "encoder.middle.1.proj.bias"])
def test_a_missing_tensor_is_named(weights, write, name):
    del weights[name]
    assert f"lacks {name}" in problem_with(write(weights))


def test_an_unexpected_tensor_is_named(weights, write):
    weights["decoder.extra.weight"] = torch.zeros(1)
    assert "unexpected decoder.extra.weight" in problem_with(write(weights))


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(weights, write):
    weights["decoder.head.2.bias"] = torch.zeros(4)
    assert "decoder.head.2.bias as [4] instead of [3]" in problem_with(write(weights))


def test_of_many_missing_tensors_a_few_are_named_and_the_rest_counted(weights, write):
    path = write({name: tensor for name, tensor in weights.items() if "decoder" not in name})
    assert "decoder.conv1.bias" in problem_with(path)
    assert "more" in problem_with(path)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["net.blocks.0.adaln_modulation_mlp.1.weight"], "Anima or Cosmos transformer"),
        (["diffusion_model.blocks.0.mlp.layer1.lora_A.weight"], "LoRA"),
        (["lora_unet_blocks_0_mlp_layer1.lora_down.weight"], "LoRA"),
        (["model.layers.0.self_attn.q_norm.weight"], "Qwen3"),
        (["double_blocks.0.img_attn.qkv.weight"], "Flux transformer"),
        (
            ["encoder.conv_in.weight", "encoder.down.0.block.0.norm1.weight", "quant_conv.weight"],
            "VAE of Stable Diffusion or Flux",
        ),
        (
            ["encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.norm1.weight"],
            "VAE of Stable Diffusion or Flux",
        ),
        (["encoder.conv1.weight", "encoder.downsamples.0.downsamples.0.residual.0.gamma"], "2.2"),
        (["something.weight"], "something.weight"),
    ],
)
def test_a_file_of_another_model_is_said_to_be_what_it_is(write, names, kind):
    path = write({name: torch.zeros(8, 8) for name in names})
    assert kind in problem_with(path)


def test_a_vae_with_other_latents_is_refused_by_its_number_of_channels(weights, write):
    weights["conv2.weight"] = torch.zeros(48, 48, 1, 1, 1)
    assert "48 channels" in problem_with(write(weights))
