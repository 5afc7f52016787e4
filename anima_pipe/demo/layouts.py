"""Names and shapes of the tensors in the released files, at any size.

Written down here apart from the code that loads them, so that each can be checked by the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Shapes = dict[str, tuple[int, ...]]

LATENT_CHANNELS = 16
PATCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSizes:
    """Sizes of an Anima transformer. Heads come out of width and head_width."""

    width: int
    blocks: int
    head_width: int
    context_width: int
    adaln_rank: int
    adapter_blocks: int
    adapter_head_width: int
    qwen_width: int
    t5_rows: int


RELEASED: Final = TransformerSizes(
    width=2048,
    blocks=28,
    head_width=128,
    context_width=1024,
    adaln_rank=256,
    adapter_blocks=6,
    adapter_head_width=64,
    qwen_width=1024,
    t5_rows=32128,
)
"""Of the transformer that is released."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenSizes:
    """Sizes of a Qwen3, by the names of its config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


def transformer_shapes(sizes: TransformerSizes) -> Shapes:
    """The transformer's tensors, without prefix."""
    width = sizes.width
    patch_values = LATENT_CHANNELS * PATCH**2
    shapes: Shapes = {
        # The padding mask is one more channel of the input.
        "x_embedder.proj.1.weight": (width, patch_values + PATCH**2),
        "t_embedder.1.linear_1.weight": (width, width),
        "t_embedder.1.linear_2.weight": (3 * width, width),
        "t_embedding_norm.weight": (width,),
        "final_layer.linear.weight": (patch_values, width),
        "final_layer.adaln_modulation.1.weight": (sizes.adaln_rank, width),
        "final_layer.adaln_modulation.2.weight": (2 * width, sizes.adaln_rank),
    }
    for number in range(sizes.blocks):
        block = f"blocks.{number}"
        for layer, source in (("self_attn", width), ("cross_attn", sizes.context_width)):
            shapes |= _attention(f"{block}.{layer}", width, source, sizes.head_width, "output_proj")
        shapes[f"{block}.mlp.layer1.weight"] = (4 * width, width)
        shapes[f"{block}.mlp.layer2.weight"] = (width, 4 * width)
        for layer in ("self_attn", "cross_attn", "mlp"):
            shapes[f"{block}.adaln_modulation_{layer}.1.weight"] = (sizes.adaln_rank, width)
            shapes[f"{block}.adaln_modulation_{layer}.2.weight"] = (3 * width, sizes.adaln_rank)
    return shapes | _text_adapter_shapes(sizes)


def _text_adapter_shapes(sizes: TransformerSizes) -> Shapes:
    width = sizes.context_width
    shapes: Shapes = {
        "llm_adapter.embed.weight": (sizes.t5_rows, width),
        "llm_adapter.out_proj.weight": (width, width),
        "llm_adapter.out_proj.bias": (width,),
        "llm_adapter.norm.weight": (width,),
    }
    for number in range(sizes.adapter_blocks):
        block = f"llm_adapter.blocks.{number}"
        for layer, source in (("self_attn", width), ("cross_attn", sizes.qwen_width)):
            shapes |= _attention(
                f"{block}.{layer}", width, source, sizes.adapter_head_width, "o_proj"
            )
        for layer in ("self_attn", "cross_attn", "mlp"):
            shapes[f"{block}.norm_{layer}.weight"] = (width,)
        shapes[f"{block}.mlp.0.weight"] = (4 * width, width)
        shapes[f"{block}.mlp.0.bias"] = (4 * width,)
        shapes[f"{block}.mlp.2.weight"] = (width, 4 * width)
        shapes[f"{block}.mlp.2.bias"] = (width,)
    return shapes


def _attention(path: str, width: int, source: int, head_width: int, output: str) -> Shapes:
    return {
        f"{path}.q_proj.weight": (width, width),
        f"{path}.k_proj.weight": (width, source),
        f"{path}.v_proj.weight": (width, source),
        f"{path}.{output}.weight": (width, width),
        f"{path}.q_norm.weight": (head_width,),
        f"{path}.k_norm.weight": (head_width,),
    }


def vae_shapes(dim: int) -> Shapes:
    """The tensors of the Wan 2.1 VAE, `dim` channels at full resolution (96 as released)."""
    latent = LATENT_CHANNELS
    wide = 4 * dim
    shapes = _conv("conv1", 2 * latent, 2 * latent, 1) | _conv("conv2", latent, latent, 1)
    shapes |= _encoder_shapes(dim) | _decoder_shapes(dim)
    for half in ("encoder", "decoder"):
        for number in (0, 2):
            shapes |= _residual(f"{half}.middle.{number}", wide, wide)
        attention = f"{half}.middle.1"
        shapes[f"{attention}.norm.gamma"] = (wide, 1, 1)
        for name, rows in (("to_qkv", 3 * wide), ("proj", wide)):
            shapes[f"{attention}.{name}.weight"] = (rows, wide, 1, 1)
            shapes[f"{attention}.{name}.bias"] = (rows,)
    return shapes


def qwen_shapes(sizes: QwenSizes) -> Shapes:
    """The tensors of a Qwen3, as transformers names them; the output head is the embedding."""
    width, inner, head = sizes.hidden_size, sizes.intermediate_size, sizes.head_dim
    queries, values = head * sizes.num_attention_heads, head * sizes.num_key_value_heads
    shapes: Shapes = {
        "model.embed_tokens.weight": (sizes.vocab_size, width),
        "model.norm.weight": (width,),
    }
    for number in range(sizes.num_hidden_layers):
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


def _encoder_shapes(dim: int) -> Shapes:
    shapes = _conv("encoder.conv1", dim, 3, 3)
    number = 0
    source = dim
    for level, factor in enumerate((1, 2, 4, 4)):
        for _ in range(2):
            shapes |= _residual(f"encoder.downsamples.{number}", factor * dim, source)
            source = factor * dim
            number += 1
        if level < 3:
            shapes |= _resample(f"encoder.downsamples.{number}", source, source)
            if level > 0:
                shapes |= _time_conv(f"encoder.downsamples.{number}", source, source)
            number += 1
    shapes["encoder.head.0.gamma"] = (source, 1, 1, 1)
    return shapes | _conv("encoder.head.2", 2 * LATENT_CHANNELS, source, 3)


def _decoder_shapes(dim: int) -> Shapes:
    source = 4 * dim
    shapes = _conv("decoder.conv1", source, LATENT_CHANNELS, 3)
    number = 0
    for level, factor in enumerate((4, 4, 2, 1)):
        for _ in range(3):
            shapes |= _residual(f"decoder.upsamples.{number}", factor * dim, source)
            source = factor * dim
            number += 1
        if level < 3:
            shapes |= _resample(f"decoder.upsamples.{number}", source // 2, source)
            if level < 2:
                shapes |= _time_conv(f"decoder.upsamples.{number}", 2 * source, source)
            source //= 2
            number += 1
    shapes["decoder.head.0.gamma"] = (source, 1, 1, 1)
    return shapes | _conv("decoder.head.2", 3, source, 3)


def _conv(path: str, out: int, source: int, reach: int) -> Shapes:
    return {f"{path}.weight": (out, source, reach, reach, reach), f"{path}.bias": (out,)}


def _residual(path: str, out: int, source: int) -> Shapes:
    shapes: Shapes = {f"{path}.residual.0.gamma": (source, 1, 1, 1)}
    shapes |= _conv(f"{path}.residual.2", out, source, 3)
    shapes[f"{path}.residual.3.gamma"] = (out, 1, 1, 1)
    shapes |= _conv(f"{path}.residual.6", out, out, 3)
    return shapes if out == source else shapes | _conv(f"{path}.shortcut", out, source, 1)


def _resample(path: str, out: int, source: int) -> Shapes:
    return {f"{path}.resample.1.weight": (out, source, 3, 3), f"{path}.resample.1.bias": (out,)}


def _time_conv(path: str, out: int, source: int) -> Shapes:
    return {f"{path}.time_conv.weight": (out, source, 3, 1, 1), f"{path}.time_conv.bias": (out,)}
