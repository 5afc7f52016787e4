"""Models of the released sizes with random weights, drawn where they are quickly drawn.

They give pictures of nothing, in exactly the time that the released ones take.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from anima_pipe.demo.layouts import (
    RELEASED,
    QwenSizes,
    Shapes,
    TransformerSizes,
    qwen_shapes,
    transformer_shapes,
    vae_shapes,
)
from anima_pipe.demo.weights import qwen_sizes
from anima_pipe.encoders.qwen_files import QWEN3_VOCABULARY
from gpu.setting import Setting

SMALL_TRANSFORMER = TransformerSizes(
    width=128,
    blocks=2,
    head_width=32,
    context_width=64,
    adaln_rank=32,
    adapter_blocks=1,
    adapter_head_width=32,
    qwen_width=64,
    t5_rows=32128,
)
QWEN = QwenSizes(
    vocab_size=QWEN3_VOCABULARY,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
)
SMALL_QWEN = qwen_sizes(QWEN3_VOCABULARY)
VAE_WIDTH, SMALL_VAE_WIDTH = 96, 8


def draw(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Draw weights that keep the size of what passes through them: norms 1, biases 0."""
    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            tensors[name] = torch.zeros(shape, device=device, dtype=dtype)
        elif len(shape) == 1 or name.endswith("gamma"):
            tensors[name] = torch.ones(shape, device=device, dtype=dtype)
        else:
            # Of a kernel over frames, one picture meets the last alone.
            inputs = math.prod(shape[1:]) // (shape[2] if len(shape) == 5 else 1)
            gain = 1 / math.sqrt(inputs)
            tensors[name] = torch.randn(shape, device=device, dtype=dtype) * gain
    return tensors


def write_transformer(setting: Setting) -> Path:
    """Write a transformer as it is released, bf16 with the prefix `net.`; return its file."""
    sizes = SMALL_TRANSFORMER if setting.small else RELEASED
    path = setting.scratch / "transformer.safetensors"
    drawn = draw(transformer_shapes(sizes), setting.device, torch.bfloat16)
    write_whole({f"net.{name}": tensor for name, tensor in drawn.items()}, path)
    return path


def write_vae(setting: Setting) -> Path:
    """Write a VAE unless there is one, bf16 with Wan's names; return its file."""
    path = setting.scratch / "vae.safetensors"
    if not path.exists():
        width = SMALL_VAE_WIDTH if setting.small else VAE_WIDTH
        write_whole(draw(vae_shapes(width), setting.device, torch.bfloat16), path)
    return path


def write_qwen(setting: Setting) -> Path:
    """Write a text encoder unless there is one: a single file, for the library's own tokenizer."""
    folder = setting.scratch / "qwen"
    folder.mkdir(exist_ok=True)
    path = folder / "qwen3.safetensors"
    if not path.exists():
        sizes = SMALL_QWEN if setting.small else QWEN
        write_whole(draw(qwen_shapes(sizes), setting.device, torch.bfloat16), path)
    return path


def write_whole(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a file under its name once it is whole: a part may be killed at any moment."""
    draft = path.with_suffix(".tmp")
    save_file(tensors, draft)
    draft.replace(path)
