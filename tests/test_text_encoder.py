"""Captions come to the ids and hidden states that Anima was trained with."""

import json

import pytest
import torch
from tiny_text_encoder import (
    CAPTIONS,
    GOLDEN,
    random_qwen,
    write_qwen_file,
    write_qwen_folder,
    write_qwen_tokenizer,
    write_t5_folder,
)
from tokenizers import Tokenizer

from anima_pipe.encoders import load_text_encoder

PROMPTS = json.loads((GOLDEN / "tokens.json").read_bytes())


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    return write_t5_folder(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def qwen_network():
    return random_qwen()


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory, qwen_network):
    return write_qwen_folder(tmp_path_factory.mktemp("qwen"), qwen_network)


@pytest.fixture(scope="module")
def encoder(qwen_folder, t5_folder):
    return load_text_encoder(qwen_folder, t5_folder)


@pytest.fixture(scope="module")
def full_vocabulary_encoder(tmp_path_factory, t5_folder):
    """A single file without a tokenizer of its own, with Qwen3's number of tokens."""
    network = random_qwen(vocabulary=151936, width=8, layers=1)
    path = write_qwen_file(tmp_path_factory.mktemp("file") / "qwen_3_06b_base.safetensors", network)
    return network, load_text_encoder(path, t5_folder)


def states_of_transformers(network, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_the_golden_prompts_come_to_their_ids(full_vocabulary_encoder, prompt):
    network, encoder = full_vocabulary_encoder
    (condition,) = encoder.encode([prompt["text"]])
    assert condition.t5_ids.tolist() == prompt["t5"]
    assert condition.t5_ids.dtype == torch.int32
    if prompt["qwen3"]:
        wanted = states_of_transformers(network, prompt["qwen3"])
        torch.testing.assert_close(condition.qwen_hidden, wanted, atol=1e-5, rtol=1e-5)
    else:
        assert condition.qwen_hidden.shape == (0, 8)


def test_there_are_forty_golden_prompts():
    assert len(PROMPTS) == 40


@pytest.mark.parametrize("form", ["folder", "shards", "file", "file without prefix"])
def test_hidden_states_are_those_of_transformers(tmp_path, qwen_network, t5_folder, form):
    if form == "folder":
        source = write_qwen_folder(tmp_path, qwen_network)
    elif form == "shards":
        source = write_qwen_folder(tmp_path, qwen_network, shard_size="40KB")
        assert len(list(source.glob("*.safetensors"))) > 1
    else:
        prefix = "" if "without" in form else "model."
        source = write_qwen_file(tmp_path / "qwen.safetensors", qwen_network, prefix)
        write_qwen_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    conditions = load_text_encoder(source, t5_folder).encode(CAPTIONS)
    for caption, condition in zip(CAPTIONS, conditions, strict=True):
        ids = tokenizer.encode(caption).ids
        assert condition.qwen_hidden.shape == (len(ids), 32)
        if ids:
            wanted = states_of_transformers(qwen_network, ids)
            torch.testing.assert_close(condition.qwen_hidden, wanted, atol=2e-5, rtol=2e-5)


def test_a_folders_own_numbers_are_used(tmp_path, qwen_network, t5_folder, qwen_folder, encoder):
    folder = write_qwen_folder(tmp_path, qwen_network)
    config = json.loads((folder / "config.json").read_bytes())
    config["rope_parameters"]["rope_theta"] = 100.0
    (folder / "config.json").write_text(json.dumps(config))
    (changed,) = load_text_encoder(folder, t5_folder).encode(CAPTIONS[:1])
    (usual,) = encoder.encode(CAPTIONS[:1])
    assert not torch.allclose(changed.qwen_hidden, usual.qwen_hidden, atol=1e-4)


def test_batch_mates_change_nothing_but_the_rounding(encoder):
    captions = [*CAPTIONS, " ".join(CAPTIONS) * 20]
    together = encoder.encode(captions)
    for caption, condition in zip(captions, together, strict=True):
        (alone,) = encoder.encode([caption])
        torch.testing.assert_close(condition.qwen_hidden, alone.qwen_hidden, atol=2e-6, rtol=1e-5)
        assert condition.t5_ids.equal(alone.t5_ids)


def test_more_captions_than_fit_a_batch_keep_their_order(encoder):
    captions = [f"{'cat ' * (index % 7)}{index}" for index in range(2000)]
    conditions = encoder.encode(captions)
    for index in (0, 6, 1001, 1999):
        (alone,) = encoder.encode([captions[index]])
        torch.testing.assert_close(
            conditions[index].qwen_hidden, alone.qwen_hidden, atol=2e-6, rtol=1e-5
        )


def test_a_caption_holds_no_memory_but_its_own(encoder):
    for condition in encoder.encode(CAPTIONS):
        states = condition.qwen_hidden
        assert states.untyped_storage().nbytes() == states.numel() * states.element_size()


def test_the_empty_caption_has_no_qwen_tokens_and_one_t5_token(encoder):
    (condition,) = encoder.encode([""])
    assert condition.qwen_hidden.shape == (0, 32)
    assert condition.t5_ids.tolist() == [1]


def test_no_captions_come_to_no_conditions(encoder):
    assert encoder.encode([]) == []


def test_long_captions_are_not_cut(encoder):
    (condition,) = encoder.encode(["one two three " * 400])
    assert condition.t5_ids.shape[0] > 1000
    assert condition.qwen_hidden.shape[0] > 1000


def test_bfloat16_states_come_in_bfloat16_on_the_cpu(qwen_folder, t5_folder, encoder):
    half = load_text_encoder(qwen_folder, t5_folder, dtype=torch.bfloat16)
    for caption in CAPTIONS:
        (states,), (wanted,) = half.encode([caption]), encoder.encode([caption])
        assert states.qwen_hidden.dtype == torch.bfloat16
        torch.testing.assert_close(
            states.qwen_hidden.float(), wanted.qwen_hidden, atol=0.1, rtol=0.05
        )


def test_the_states_may_be_trained_on(encoder):
    (condition,) = encoder.encode(["1girl"])
    weight = torch.ones(1, requires_grad=True)
    (condition.qwen_hidden * weight).sum().backward()
    assert weight.grad is not None
