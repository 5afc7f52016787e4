"""Files that are no Anima transformer: one clear line each, and never a half-filled model."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from golden_model import golden_weights
from safetensors.torch import save, save_file

from anima_pipe.errors import CheckpointError
from anima_pipe.model import load_transformer, read_transformer_config

Weights = dict[str, torch.Tensor]


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = golden_weights("a")
    del weights["blocks.1.mlp.layer1.weight"]

    _assert_refused(tmp_path, weights, "lacks blocks.1.mlp.layer1.weight")


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    weights = {k: w for k, w in golden_weights("a").items() if not k.startswith("blocks.1.self")}

    _assert_refused(tmp_path, weights, "lacks blocks.1.self_attn.q_proj.weight, .* and 3 more")


@pytest.mark.parametrize("name", ["x_embedder.proj.1.weight", "blocks.0.self_attn.q_norm.weight"])
def test_a_missing_tensor_that_sizes_are_read_off_is_named(tmp_path: Path, name: str) -> None:
    weights = golden_weights("a")
    del weights[name]

    _assert_refused(tmp_path, weights, f"lacks {name}")


def test_a_gap_in_the_blocks_shows_as_missing_tensors(tmp_path: Path) -> None:
    weights = {k.replace("blocks.1.", "blocks.2."): w for k, w in golden_weights("a").items()}

    _assert_refused(tmp_path, weights, "lacks blocks.1")


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    weights = golden_weights("a") | {"blocks.0.self_attn.q_proj.bias": torch.zeros(64)}

    _assert_refused(tmp_path, weights, "has unexpected blocks.0.self_attn.q_proj.bias")


def test_a_tensor_without_the_prefix_of_the_others_is_unexpected(tmp_path: Path) -> None:
    weights = {f"net.{name}": weight for name, weight in golden_weights("a").items()}
    weights["vae.decoder.conv1.weight"] = torch.zeros(2)
    weights["blocks.0.mlp.layer3.weight"] = torch.zeros(2)

    _assert_refused(tmp_path, weights, "has unexpected blocks.0.mlp.layer3.weight")


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    weights = golden_weights("a") | {"blocks.1.mlp.layer2.weight": torch.zeros(64, 255)}

    _assert_refused(
        tmp_path, weights, r"blocks.1.mlp.layer2.weight as \[64, 255\] instead of \[64, 256\]"
    )


@pytest.mark.parametrize(
    ("name", "shape", "complaint"),
    [
        ("x_embedder.proj.1.weight", (64, 72), "72 numbers a patch"),
        ("x_embedder.proj.1.weight", (64, 68, 1), "no matrix"),
        ("blocks.0.self_attn.q_norm.weight", (1, 32), "no vector"),
        ("blocks.0.self_attn.q_norm.weight", (24,), "not a multiple of its head width 24"),
    ],
)
def test_sizes_that_fit_no_anima_are_told(
    tmp_path: Path, name: str, shape: tuple[int, ...], complaint: str
) -> None:
    _assert_refused(tmp_path, golden_weights("a") | {name: torch.zeros(shape)}, complaint)


def test_a_cosmos_file_without_text_adapter_is_told(tmp_path: Path) -> None:
    weights = {k: w for k, w in golden_weights("a").items() if not k.startswith("llm_adapter.")}

    _assert_refused(tmp_path, weights, "no text adapter .* Cosmos-Predict2")


def test_a_text_adapter_that_lacks_a_block_is_incomplete(tmp_path: Path) -> None:
    weights = golden_weights("a")
    weights = {k: w for k, w in weights.items() if not k.startswith("llm_adapter.blocks.0")}

    _assert_refused(tmp_path, weights, "lacks llm_adapter.blocks.0")


@pytest.mark.parametrize(
    "extra",
    [
        {"blocks.0.mlp.layer1.comfy_quant": torch.zeros(9, dtype=torch.uint8)},
        {"blocks.0.mlp.layer1.weight_scale": torch.ones(1)},
        {"blocks.0.mlp.layer1.scale_weight": torch.ones(1)},
        {"scaled_fp8": torch.zeros(0)},
        {"blocks.0.mlp.layer1.weight": torch.zeros(256, 64).to(torch.float8_e4m3fn)},
        {"blocks.0.mlp.layer1.weight": torch.zeros(256, 64, dtype=torch.int8)},
    ],
    ids=" ".join,
)
def test_a_quantised_file_is_refused(tmp_path: Path, extra: Weights) -> None:
    name = next(iter(extra))

    _assert_refused(tmp_path, golden_weights("a") | extra, f"is quantised: it holds {name}")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["double_blocks.0.img_attn.qkv.weight", "img_in.weight"], "a Flux transformer"),
        (["model.diffusion_model.double_blocks.0.img_attn.proj.bias"], "a Flux transformer"),
        (["transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.0.x"], "a Flux"),
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"], "SDXL UNet"),
        (["down_blocks.1.attentions.0.norm.weight"], "SDXL UNet"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Diffusion 3"),
        (["blocks.0.self_attn.q.weight", "head.modulation", "patch_embedding.bias"], "a Wan"),
        (["transformer_blocks.0.img_mod.1.weight"], "a Qwen-Image transformer"),
        (["cap_embedder.0.weight", "layers.0.attention.qkv.weight"], "Z-Image"),
        (["net.blocks.block0.blocks.0.block.attn.to_q.0.weight"], "Cosmos 1.0"),
        (["transformer_blocks.0.attn1.to_q.weight", "patch_embed.proj.weight"], "diffusers"),
        (["diffusion_model.blocks.0.self_attn.q_proj.lora_A.weight"], "an adapter"),
        (["lora_unet_blocks_0_self_attn_q_proj.lora_down.weight"], "an adapter"),
        (["diffusion_model.blocks.0.self_attn.q_proj.lokr_w1"], "an adapter"),
        (["diffusion_model.t_embedding_norm.w_norm"], "an adapter"),
        (["encoder.conv1.weight", "decoder.middle.0.residual.0.gamma"], "a VAE"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "a VAE"),
        (["encoder.downsamples.0.residual.0.gamma"], "the VAE of Wan 2.1"),
        (["model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight"], "a Qwen3"),
        (["embed_tokens.weight"], "a language model"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 text encoder"),
        (["conv.weight"], "not an Anima transformer: its tensors are conv.weight"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_kind(
    tmp_path: Path, names: list[str], kind: str
) -> None:
    _assert_refused(tmp_path, {name: torch.zeros(2) for name in names}, kind)


def test_a_file_cut_short_is_truncated_wherever_it_ends(tmp_path: Path) -> None:
    whole = save(golden_weights("a"))
    file = tmp_path / "anima.safetensors"

    for length in (100, 1000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"is truncated: {length:,} of"):
            load_transformer(file)


def _header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def _torch_pickle() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"abc", "is not a safetensors file"),
        (bytes(1000), "is not a safetensors file"),
        (pickle.dumps({"weight": [1.0]}), "is a PyTorch pickle"),
        (_torch_pickle(), "is a PyTorch pickle"),
        (b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>", "is a web page"),
        (b"GGUF\3\0\0\0" + bytes(100), "is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "is a Git LFS pointer"),
        ((9).to_bytes(8, "little") + b"{'a': 3}.", "the header of .* is damaged"),
        (_header({"a": 3}), "is damaged"),
        (_header({"a": {"dtype": "F32", "shape": [2]}}), "is damaged"),
        (_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}), "is damaged"),
        (_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-8, -4]}}), "is damaged"),
        (_header({}), "not an Anima transformer"),
    ],
    ids=range(14),
)
def test_a_file_that_is_no_safetensors_file_is_told(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    file = tmp_path / "anima.safetensors"
    file.write_bytes(content)

    _assert_told(file, complaint)


def test_a_file_that_does_not_exist_is_told(tmp_path: Path) -> None:
    _assert_told(tmp_path / "anima.safetensors", "does not exist")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "anima.safetensors"
    save_file(golden_weights("a"), file)
    file.chmod(0)

    _assert_told(file, "cannot be read: Permission denied")


def test_a_folder_is_told_with_the_file_that_lies_in_it(tmp_path: Path) -> None:
    save_file(golden_weights("a"), tmp_path / "anima-base.safetensors")

    with pytest.raises(CheckpointError, match="is a folder") as refusal:
        load_transformer(tmp_path)

    assert "anima-base.safetensors" in refusal.value.remedy


def _assert_refused(folder: Path, weights: Weights, complaint: str) -> None:
    file = folder / "wrong.safetensors"
    save_file(weights, file)
    _assert_told(file, complaint)


def _assert_told(file: Path, complaint: str) -> None:
    for read in (load_transformer, read_transformer_config):
        with pytest.raises(CheckpointError, match=complaint) as refusal:
            read(file)
        assert str(file) in refusal.value.problem
        assert "\n" not in refusal.value.problem
        assert refusal.value.remedy
