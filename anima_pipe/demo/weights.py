"""Draw the demo's untrained weights and write them in the released file formats.

Every tensor takes its own random stream, named after it, so that changing one size leaves the
other tensors as they were.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch

from anima_pipe.demo.layouts import (
    QwenSizes,
    Shapes,
    TransformerSizes,
    qwen_shapes,
    transformer_shapes,
    vae_shapes,
)
from anima_pipe.demo.text_files import T5_EMBEDDINGS
from anima_pipe.weights.writing import write_tensors

VAE_DIM = 8

Gains = Mapping[str, float]
"""Part of a name -> deviation of that weight times the square root of its inputs; else 1."""

TRANSFORMER_GAINS: Final[Gains] = {
    # The untrained velocity is smaller than its target's deviation, which is about 1.4.
    "final_layer.linear": 0.5,
    # The residual stream grows slowly.
    "output_proj": 0.5,
    "layer2": 0.5,
}
VAE_GAINS: Final[Gains] = {
    # Kernels over three frames: of one picture, only the last of the three slices sees anything.
    "residual": math.sqrt(3),
    "head.2": math.sqrt(3),
    "coder.conv1": math.sqrt(3),
}


def transformer_sizes(qwen: QwenSizes) -> TransformerSizes:
    """The demo's transformer: every part of the released one, small."""
    return TransformerSizes(
        width=128,
        blocks=3,
        head_width=32,
        context_width=64,
        adaln_rank=32,
        adapter_blocks=2,
        adapter_head_width=32,
        qwen_width=qwen.hidden_size,
        t5_rows=T5_EMBEDDINGS,
    )


def qwen_sizes(tokens: int) -> QwenSizes:
    """The demo's Qwen3, for a vocabulary of `tokens`."""
    return QwenSizes(
        vocab_size=tokens,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    )


def write_transformer(
    path: Path, sizes: TransformerSizes, t5_pieces: int, gains: Gains = TRANSFORMER_GAINS
) -> None:
    """Write the transformer, prefix `net.`, bf16.

    Args:
        path: The .safetensors file to write.
        sizes: Of the transformer.
        t5_pieces: Size of the T5 vocabulary. The rows of the embedding behind it are never asked
            for; they are zero, and compress to nothing.
        gains: How large its weights are drawn.
    """
    tensors = _drawn(transformer_shapes(sizes), gains)
    embedding = tensors["llm_adapter.embed.weight"]
    embedding *= math.sqrt(sizes.context_width)  # a table, not a product: rows of unit deviation
    embedding[t5_pieces:] = 0
    _write(path, {f"net.{name}": tensor for name, tensor in tensors.items()})


def write_vae(path: Path) -> None:
    """Write the VAE with Wan's key names, bf16."""
    _write(path, _drawn(vae_shapes(VAE_DIM), VAE_GAINS))


def write_qwen(folder: Path, sizes: QwenSizes) -> None:
    """Write config.json and model.safetensors of a tiny Qwen3 beside its tokenizer."""
    config = asdict(sizes) | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = _drawn(qwen_shapes(sizes), {})
    tensors["model.embed_tokens.weight"] *= math.sqrt(sizes.hidden_size)
    _write(folder / "model.safetensors", tensors)


def _drawn(shapes: Shapes, gains: Gains) -> dict[str, torch.Tensor]:
    """One tensor per shape: norms are 1, biases 0, the rest normal with deviation gain/sqrt(in)."""
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            tensors[name] = torch.zeros(shape)
        elif "norm" in name or name.endswith("gamma"):
            tensors[name] = torch.ones(shape)
        else:
            source = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            gain = next((gain for part, gain in gains.items() if part in name), 1.0)
            deviation = gain / math.sqrt(math.prod(shape[1:]))
            tensors[name] = deviation * torch.randn(shape, generator=source)
    return tensors


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    rounded = {name: tensors[name].to(torch.bfloat16).contiguous() for name in sorted(tensors)}
    write_tensors(path, rounded, {"format": "pt"})
