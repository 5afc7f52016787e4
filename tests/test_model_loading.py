"""Checkpoints that load, whatever their dialect, and what is read off them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from golden_model import golden_transformer, golden_weights
from safetensors.torch import save_file

from anima_pipe.model import (
    AnimaTransformer,
    LlmAdapterConfig,
    TransformerConfig,
    load_transformer,
    read_transformer_config,
)

TINY = TransformerConfig(
    width=24,
    blocks=1,
    head_width=12,
    context_width=10,
    adaln_width=2,
    mlp_width=20,
    llm_adapter=LlmAdapterConfig(
        source_width=6,
        width=8,
        output_width=10,
        blocks=2,
        head_width=4,
        mlp_width=14,
        vocabulary=18,
        in_proj=True,
    ),
)


@pytest.mark.parametrize("prefix", ["", "net.", "diffusion_model.", "model.diffusion_model."])
def test_every_known_prefix_loads(tmp_path: Path, prefix: str) -> None:
    weights = golden_weights("a")
    file = tmp_path / "anima.safetensors"
    save_file({prefix + name: weight for name, weight in weights.items()}, file)

    loaded = load_transformer(file).state_dict()

    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_land_in_the_wanted_dtype(
    tmp_path: Path, stored: torch.dtype, wanted: torch.dtype
) -> None:
    weights = {name: weight.to(stored) for name, weight in golden_weights("a").items()}
    file = tmp_path / "anima.safetensors"
    save_file(weights, file)

    model = load_transformer(str(file), dtype=wanted)

    for name, parameter in model.named_parameters():
        assert parameter.dtype == wanted
        assert torch.equal(parameter, weights[name].to(wanted)), name


def test_a_loaded_model_lives_on_when_its_file_is_overwritten(tmp_path: Path) -> None:
    weights = golden_weights("a")
    file = tmp_path / "anima.safetensors"
    save_file(weights, file)

    model = load_transformer(file)
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))

    name = "x_embedder.proj.1.weight"
    assert torch.equal(model.get_parameter(name), weights[name])


def test_tensors_larger_than_a_chunk_arrive_whole(tmp_path: Path) -> None:
    sizes = dataclasses.replace(TINY.llm_adapter, vocabulary=500_000)  # 20 MB in fp32
    model = AnimaTransformer(dataclasses.replace(TINY, llm_adapter=sizes))
    file = tmp_path / "anima.safetensors"
    save_file(model.state_dict(), file)

    loaded = load_transformer(file)

    assert torch.equal(loaded.llm_adapter.embed.weight, model.llm_adapter.embed.weight)


@pytest.mark.parametrize(
    "extra",
    [
        "pos_embedder.seq",
        "pos_embedder.dim_spatial_range",
        "pos_embedder.dim_temporal_range",
        "llm_adapter.rotary_emb.inv_freq",
        "accum_image_sample_counter",
        "blocks.0.self_attn.attn_op._extra_state",
    ],
)
def test_harmless_extras_are_passed_over(tmp_path: Path, extra: str) -> None:
    file = tmp_path / "anima.safetensors"
    weights = {f"net.{name}": weight for name, weight in golden_weights("a").items()}
    save_file(weights | {f"net.{extra}": torch.arange(4)}, file)

    assert load_transformer(file).config == golden_transformer("a").config


def test_the_transformer_is_found_in_a_whole_comfyui_checkpoint(tmp_path: Path) -> None:
    weights = {f"model.diffusion_model.{name}": w for name, w in golden_weights("a").items()}
    others = {"vae.decoder.conv1.weight": torch.zeros(2), "text_encoders.x": torch.zeros(2).byte()}
    file = tmp_path / "anima.safetensors"
    save_file(weights | others, file)

    assert load_transformer(file).config == golden_transformer("a").config


@pytest.mark.parametrize("blocks", [1, 28, 36, 40, 52])
def test_the_number_of_blocks_is_read_off_the_keys(tmp_path: Path, blocks: int) -> None:
    config = dataclasses.replace(TINY, blocks=blocks)
    file = _save(tmp_path, config)

    assert read_transformer_config(file) == config
    assert len(load_transformer(file).blocks) == blocks


@pytest.mark.parametrize(
    "change",
    [
        {"width": 36},
        {"head_width": 24},
        {"context_width": 10, "adaln_width": 5},
        {"mlp_width": 11},
        {"padding_mask": False},
    ],
    ids=str,
)
def test_every_size_is_read_off_the_shapes(tmp_path: Path, change: dict[str, int]) -> None:
    config = dataclasses.replace(TINY, **change)  # pyright: ignore[reportArgumentType]

    assert read_transformer_config(_save(tmp_path, config)) == config


@pytest.mark.parametrize(
    "change",
    [
        {"source_width": 7},
        {"width": 12},
        {"width": 10, "head_width": 10, "in_proj": False},
        {"blocks": 3},
        {"head_width": 2},
        {"mlp_width": 9},
        {"vocabulary": 5},
    ],
    ids=str,
)
def test_every_size_of_the_text_adapter_is_read_off_the_shapes(
    tmp_path: Path, change: dict[str, int]
) -> None:
    adapter = dataclasses.replace(TINY.llm_adapter, **change)  # pyright: ignore[reportArgumentType]
    config = dataclasses.replace(TINY, llm_adapter=adapter)

    assert read_transformer_config(_save(tmp_path, config)) == config


def test_reading_the_configuration_reads_no_weights(tmp_path: Path) -> None:
    file = _save(tmp_path, TINY)
    size = file.stat().st_size
    # The weights become a hole of the same length.
    header_bytes = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    os.truncate(file, header_bytes)
    os.truncate(file, size)

    assert read_transformer_config(file) == TINY


def _save(folder: Path, config: TransformerConfig) -> Path:
    file = folder / "anima.safetensors"
    save_file(AnimaTransformer(config).state_dict(), file)
    return file
