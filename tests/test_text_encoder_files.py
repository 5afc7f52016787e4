"""Which files the text encoder is loaded from, and what is said about the others."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text_encoder import (
    random_qwen,
    write_qwen_file,
    write_qwen_folder,
    write_qwen_tokenizer,
    write_t5_folder,
)

from anima_pipe.encoders import load_text_encoder
from anima_pipe.errors import CheckpointError, ConfigError, PipeError


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_t5_folder(folder / "t5", pieces=2000)
    write_qwen_folder(folder / "qwen", random_qwen())
    return folder


@pytest.fixture
def t5(sources, tmp_path):
    return shutil.copytree(sources / "t5", tmp_path / "t5")


@pytest.fixture
def qwen(sources, tmp_path):
    return shutil.copytree(sources / "qwen", tmp_path / "qwen")


@pytest.fixture
def qwen_weights(qwen):
    return load_file(qwen / "model.safetensors")


def problem_with(qwen: Path, t5: Path, kind: type[PipeError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        load_text_encoder(qwen, t5)
    assert "\n" not in caught.value.problem
    return caught.value.problem


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_a_missing_encoder_is_said_to_be_missing(tmp_path, t5):
    assert "does not exist" in problem_with(tmp_path / "nowhere", t5)


def test_a_missing_tensor_is_named_and_not_made_up(qwen, qwen_weights, t5):
    del qwen_weights["layers.1.mlp.up_proj.weight"]
    save_file(qwen_weights, qwen / "model.safetensors")
    assert "lacks layers.1.mlp.up_proj.weight" in problem_with(qwen, t5)


def test_an_unexpected_tensor_is_named(qwen, qwen_weights, t5):
    qwen_weights["layers.0.mlp.up_proj.weight_scale"] = torch.zeros(1)
    save_file(qwen_weights, qwen / "model.safetensors")
    assert "unexpected layers.0.mlp.up_proj.weight_scale" in problem_with(qwen, t5)


def test_a_tensor_of_the_wrong_shape_is_named(qwen, qwen_weights, t5):
    qwen_weights["layers.1.mlp.up_proj.weight"] = torch.zeros(5, 32)
    save_file(qwen_weights, qwen / "model.safetensors")
    assert "layers.1.mlp.up_proj.weight as [5, 32] instead of [96, 32]" in problem_with(qwen, t5)


def test_a_missing_shard_is_named(tmp_path, t5):
    folder = write_qwen_folder(tmp_path / "shards", random_qwen(), shard_size="40KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in problem_with(folder, t5)


def test_a_truncated_file_is_refused(qwen, t5):
    path = qwen / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in problem_with(qwen, t5)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["net.blocks.0.adaln_modulation_mlp.1.weight"], "Anima or Cosmos transformer"),
        (["encoder.conv1.weight", "encoder.downsamples.0.residual.0.gamma"], "VAE of Wan 2.1"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5 text encoder"),
        (["text_model.encoder.layers.0.self_attn.q_proj.weight"], "CLIP text encoder"),
        (["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"], "language model"),
    ],
)
def test_a_file_of_another_model_is_said_to_be_what_it_is(tmp_path, t5, names, kind):
    path = tmp_path / "qwen.safetensors"
    save_file({name: torch.zeros(8, 8) for name in names}, path)
    assert kind in problem_with(path, t5)


def test_a_folder_without_config_is_refused(qwen, t5):
    (qwen / "config.json").unlink()
    assert "config.json" in problem_with(qwen, t5)


def test_a_folder_without_weights_is_refused(qwen, t5):
    (qwen / "model.safetensors").unlink()
    assert "0 .safetensors" in problem_with(qwen, t5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "qwen2"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("use_sliding_window", True),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ],
)
def test_a_config_of_another_network_is_refused_by_its_key(qwen, t5, key, value):
    edit_json(qwen / "config.json", **{key: value})
    named = "rope_type" if key == "rope_parameters" else key
    assert named in problem_with(qwen, t5)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_damaged_json_file_is_named(qwen, t5, name):
    (qwen / name).write_text("{")
    assert name in problem_with(qwen, t5)


def test_weights_of_another_vocabulary_need_their_own_tokenizer(tmp_path, t5):
    path = write_qwen_file(tmp_path / "alone" / "qwen.safetensors", random_qwen())
    assert "no tokenizer" in problem_with(path, t5, ConfigError)


def test_a_tokenizer_with_more_tokens_than_the_weights_is_refused(tmp_path, t5):
    path = write_qwen_file(tmp_path / "small" / "qwen.safetensors", random_qwen(vocabulary=100))
    write_qwen_tokenizer(path.parent)
    assert "100" in problem_with(path, t5, ConfigError)


def test_another_models_tokenizer_beside_qwen3_is_found_out(tmp_path, t5):
    network = random_qwen(vocabulary=151936, width=8, layers=1)
    path = write_qwen_file(tmp_path / "models" / "qwen.safetensors", network)
    write_qwen_tokenizer(path.parent)
    assert "not Qwen3's tokenizer" in problem_with(path, t5, ConfigError)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_a_damaged_tokenizer_is_named(qwen, t5, name):
    (qwen / "tokenizer.json").unlink()
    (qwen / "merges.txt").write_text("#version: 0.2\n")
    (qwen / name).write_text("{")
    assert str(qwen) in problem_with(qwen, t5, ConfigError)


def test_a_bad_t5_folder_is_found_before_the_weights_are_read(qwen, t5):
    (qwen / "model.safetensors").write_bytes(b"")
    (t5 / "spiece.model").unlink()
    assert "spiece.model" in problem_with(qwen, t5, ConfigError)
