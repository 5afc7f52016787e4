"""Qwen3's network as a text encoder: without its head, and nothing in it that is in no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3Model

from anima_pipe.encoders.qwen_files import QwenFiles
from anima_pipe.errors import CheckpointError
from anima_pipe.plain_text import parsed_json
from anima_pipe.weights.files import check_names, landed, mapped_tensors
from anima_pipe.weights.kinds import QWEN3, wrong_kind

WANTED = "a Qwen3 text encoder"
_GIVE_RELEASE = "Give Qwen3-0.6B as released, whole and not converted by another program."
# Harmless extras: the head that predicts words, which many files repeat.
_UNUSED = {"lm_head.weight"}

# What sizes are read off; no other model has all of them.
_MARKS = {
    "embed_tokens.weight",
    "layers.0.self_attn.q_norm.weight",
    "layers.0.mlp.gate_proj.weight",
}
# What shapes cannot tell, as released; a folder's config.json may say otherwise for the numbers.
_ROPE_THETA = 1_000_000.0
_NORM_EPSILON = 1e-6
# What this program computes; a folder that says otherwise is of another model.
_FIXED = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "rope_scaling": None,
    "rope_type": "default",
}
_LAYER = re.compile(r"^layers\.(\d+)\.")
_LONGEST_CAPTION = 40_960  # Tokens, as released; nothing is allocated for it.


def load_qwen_network(files: QwenFiles, dtype: torch.dtype, device: torch.device) -> Qwen3Model:
    """Load the network, frozen; every tensor comes from the files or there is an error.

    Raises:
        CheckpointError: The files are damaged, of another model, or not whole.
    """
    tensors = {
        name.removeprefix("model."): tensor
        for path in files.weights
        for name, tensor in mapped_tensors(path).items()
        if name not in _UNUSED
    }
    config = _read_config(files, tensors)
    with torch.device("meta"):
        network = Qwen3Model(config)
    check_names(
        files.source,
        WANTED,
        _GIVE_RELEASE,
        expected={name: tensor.shape for name, tensor in network.state_dict().items()},
        found={name: tensor.shape for name, tensor in tensors.items()},
    )
    weights = {name: landed(tensor, dtype, device) for name, tensor in tensors.items()}
    network.load_state_dict(weights, assign=True)
    # The only tensors that are in no file: made again, for the first ones hold no numbers.
    network.rotary_emb = type(network.rotary_emb)(config=config).to(device)
    return network.eval().requires_grad_(requires_grad=False)


def _read_config(files: QwenFiles, tensors: Mapping[str, torch.Tensor]) -> Qwen3Config:
    """Read the sizes off the shapes; what shapes cannot tell comes from config.json if any."""
    if not tensors.keys() >= _MARKS:
        raise wrong_kind(files.source, WANTED, QWEN3, tensors, _GIVE_RELEASE)
    vocabulary, hidden = tensors["embed_tokens.weight"].shape
    (head,) = tensors["layers.0.self_attn.q_norm.weight"].shape

    def heads(projection: str) -> int:
        name = f"layers.0.self_attn.{projection}.weight"
        return tensors[name].shape[0] // head if name in tensors else 1

    theta, epsilon = _stated_numbers(files.config)
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=tensors["layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=len({match[1] for name in tensors if (match := _LAYER.match(name))}),
        num_attention_heads=heads("q_proj"),
        num_key_value_heads=heads("k_proj"),
        head_dim=head,
        rms_norm_eps=epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=_LONGEST_CAPTION,
    )


def _stated_numbers(config: Path | None) -> tuple[float, float]:
    """Return RoPE's theta and the norms' epsilon, as config.json has them or else as released.

    Raises:
        CheckpointError: config.json is damaged, or of a network that is not computed here.
    """
    if config is None:
        return _ROPE_THETA, _NORM_EPSILON
    try:
        stated = parsed_json(config.read_bytes())
        # Transformers 5 moved what concerns RoPE into a table of its own.
        stated |= stated.get("rope_parameters") or {}
        numbers = stated.get("rope_theta", _ROPE_THETA), stated.get("rms_norm_eps", _NORM_EPSILON)
        theta, epsilon = (float(number) for number in numbers)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{config} is damaged ({error})", "download it again") from error
    for key, value in _FIXED.items():
        if stated.get(key, value) != value:
            raise CheckpointError(
                f"{config} says {key} = {stated[key]!r}; Anima's Qwen3 has {value!r}",
                "give the folder of Qwen3-0.6B",
            )
    return theta, epsilon
