"""Draw the demo's untrained weights and write them in the released file formats.

Every tensor takes its own random stream, named after it, so that changing one size leaves the
other tensors as they were.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from anima_pipe.demo.layouts import Shapes, TransformerSizes, transformer_shapes, vae_shapes

VAE_DIM = 8
QWEN_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
SIZES = TransformerSizes(
    width=128,
    blocks=3,
    head_width=32,
    context_width=64,
    adaln_rank=32,
    adapter_blocks=2,
    adapter_head_width=32,
    qwen_width=64,
    t5_rows=32128,
)

Gain = Callable[[str], float]


def write_transformer(path: Path, t5_pieces: int) -> None:
    """Write the transformer, prefix `net.`, bf16.

    Args:
        path: The .safetensors file to write.
        t5_pieces: Size of the demo's T5 vocabulary. The rows of the embedding behind it are never
            asked for; they are zero, and compress to nothing.
    """
    tensors = _drawn(transformer_shapes(SIZES), _transformer_gain)
    tensors["llm_adapter.embed.weight"][t5_pieces:] = 0
    _write(path, {f"net.{name}": tensor for name, tensor in tensors.items()})


def write_vae(path: Path) -> None:
    """Write the VAE with Wan's key names, bf16."""
    _write(path, _drawn(vae_shapes(VAE_DIM), _vae_gain))


def write_qwen(folder: Path, tokens: int) -> None:
    """Write config.json and model.safetensors of a tiny Qwen3 beside its tokenizer.

    Args:
        folder: The folder to write to.
        tokens: Size of the tokenizer's vocabulary.
    """
    config = QWEN_CONFIG | {"vocab_size": tokens}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write(folder / "model.safetensors", _drawn(qwen_shapes(tokens), _qwen_gain))


def qwen_shapes(tokens: int) -> Shapes:
    """The tensors of the demo's Qwen3, as transformers names them; the head is the embedding."""
    width, inner = QWEN_CONFIG["hidden_size"], QWEN_CONFIG["intermediate_size"]
    head = QWEN_CONFIG["head_dim"]
    queries = head * QWEN_CONFIG["num_attention_heads"]
    values = head * QWEN_CONFIG["num_key_value_heads"]
    shapes: Shapes = {"model.embed_tokens.weight": (tokens, width), "model.norm.weight": (width,)}
    for number in range(QWEN_CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.post_attention_layernorm.weight": (width,),
            f"{layer}.self_attn.q_proj.weight": (queries, width),
            f"{layer}.self_attn.k_proj.weight": (values, width),
            f"{layer}.self_attn.v_proj.weight": (values, width),
            f"{layer}.self_attn.o_proj.weight": (width, queries),
            f"{layer}.self_attn.q_norm.weight": (head,),
            f"{layer}.self_attn.k_norm.weight": (head,),
            f"{layer}.mlp.gate_proj.weight": (inner, width),
            f"{layer}.mlp.up_proj.weight": (inner, width),
            f"{layer}.mlp.down_proj.weight": (width, inner),
        }
    return shapes


def _drawn(shapes: Shapes, gain: Gain) -> dict[str, torch.Tensor]:
    """One tensor per shape: norms are 1, biases 0, the rest normal with deviation gain/sqrt(in)."""
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            tensors[name] = torch.zeros(shape)
        elif "norm" in name or name.endswith("gamma"):
            tensors[name] = torch.ones(shape)
        else:
            source = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            deviation = gain(name) / math.sqrt(math.prod(shape[1:]))
            tensors[name] = deviation * torch.randn(shape, generator=source)
    return tensors


def _transformer_gain(name: str) -> float:
    if name.endswith("embed.weight"):
        return math.sqrt(SIZES.context_width)  # rows of unit deviation
    if name.startswith("final_layer.linear"):
        return 0.5  # the untrained velocity is smaller than the target's deviation, about 1.4
    if "output_proj" in name or "layer2" in name:
        return 0.5
    return 1.0


def _vae_gain(name: str) -> float:
    # A causal convolution sees one frame, so a third of its inputs.
    return math.sqrt(3) if "residual" in name or name.endswith("conv1.weight") else 1.0


def _qwen_gain(name: str) -> float:
    return 1.0


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    rounded = {name: tensors[name].to(torch.bfloat16).contiguous() for name in sorted(tensors)}
    save_file(rounded, path, metadata={"format": "pt"})
