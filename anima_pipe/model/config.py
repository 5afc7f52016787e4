"""The sizes of an Anima transformer, and how they are read off the shapes of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from anima_pipe.records import LATENT_CHANNELS

PATCH = 2
"""Side of the square of latent pixels that makes one token."""

PARTS: Final = {
    "llm_adapter": r"llm_adapter\..*",
    "self_attn": r"blocks\.\d+\.self_attn\..*",
    "cross_attn": r"blocks\.\d+\.cross_attn\..*",
    "mlp": r"blocks\.\d+\.mlp\..*",
    "mod": r".*adaln_modulation.*",
}
"""Parts of the model that may train at rates of their own, by Kohya's names, and the regular
expressions that are the whole paths of their modules."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmAdapterConfig:
    """Sizes of the text adapter; the defaults are those of every released file."""

    source_width: int = 1024
    """Width S of Qwen's hidden states."""
    width: int = 1024
    output_width: int = 1024
    """Width D of the embedding of T5 ids and of the text condition."""
    blocks: int = 6
    head_width: int = 64
    mlp_width: int = 4096
    vocabulary: int = 32128
    """Rows of the embedding; T5 has 32100 ids."""
    in_proj: bool = False
    """Whether a linear leads from the embedding to `width`."""

    def __post_init__(self) -> None:
        _check_heads("llm_adapter", self.width, self.head_width, smallest=2)

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.width // self.head_width


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes of the diffusion transformer; the defaults are those of the released 2B model."""

    width: int = 2048
    blocks: int = 28
    head_width: int = 128
    context_width: int = 1024
    """Width D of the text condition."""
    adaln_width: int = 256
    """Rank of the modulations."""
    mlp_width: int = 8192
    padding_mask: bool = True
    """Whether the patches carry a 17th channel, zero in training and in every sampler."""
    llm_adapter: LlmAdapterConfig = field(default_factory=LlmAdapterConfig)

    def __post_init__(self) -> None:
        # Under 12, the spatial axes of the rotary embedding get a width of 2 and no frequency.
        _check_heads("transformer", self.width, self.head_width, smallest=12)

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.width // self.head_width

    @property
    def patch_width(self) -> int:
        """Numbers in one patch, as the patch embedding takes them: 68, or 64 without mask."""
        return (LATENT_CHANNELS + self.padding_mask) * PATCH**2


def _check_heads(part: str, width: int, head_width: int, *, smallest: int) -> None:
    if width % head_width:
        raise ValueError(f"{part} width {width} is not a multiple of its head width {head_width}")
    if head_width % 2 or head_width < smallest:
        raise ValueError(f"{part} head width {head_width} is not an even number from {smallest}")


def config_from_shapes(shapes: Shapes) -> TransformerConfig:
    """Read the sizes of a transformer off the shapes of its weights.

    Each size is taken from one tensor; whether all the others fit is for the caller to compare.

    Args:
        shapes: Shape of every tensor, by its name in the checkpoint without prefix.

    Raises:
        KeyError: With the name of a tensor that is needed here and missing.
        ValueError: The shapes belong to no Anima transformer.
    """
    width, patch_width = _matrix(shapes, "x_embedder.proj.1.weight")
    without_mask = LATENT_CHANNELS * PATCH**2
    if patch_width not in (without_mask, without_mask + PATCH**2):
        raise ValueError(
            f"x_embedder.proj.1.weight takes {patch_width} numbers a patch, not 68 (or 64 without "
            "padding mask): a video or inpainting variant"
        )
    return TransformerConfig(
        width=width,
        blocks=_count_blocks(shapes, "blocks."),
        head_width=_vector(shapes, "blocks.0.self_attn.q_norm.weight"),
        context_width=_matrix(shapes, "blocks.0.cross_attn.k_proj.weight")[1],
        adaln_width=_matrix(shapes, "blocks.0.adaln_modulation_self_attn.1.weight")[0],
        mlp_width=_matrix(shapes, "blocks.0.mlp.layer1.weight")[0],
        padding_mask=patch_width > without_mask,
        llm_adapter=_adapter_config(shapes),
    )


def _adapter_config(shapes: Shapes) -> LlmAdapterConfig:
    vocabulary, output_width = _matrix(shapes, "llm_adapter.embed.weight")
    return LlmAdapterConfig(
        source_width=_matrix(shapes, "llm_adapter.blocks.0.cross_attn.k_proj.weight")[1],
        width=_matrix(shapes, "llm_adapter.out_proj.weight")[1],
        output_width=output_width,
        blocks=_count_blocks(shapes, "llm_adapter.blocks."),
        head_width=_vector(shapes, "llm_adapter.blocks.0.self_attn.q_norm.weight"),
        mlp_width=_matrix(shapes, "llm_adapter.blocks.0.mlp.0.weight")[0],
        vocabulary=vocabulary,
        in_proj="llm_adapter.in_proj.weight" in shapes,
    )


def _count_blocks(names: Iterable[str], prefix: str) -> int:
    """Return one more than the highest block number: a gap then shows as missing tensors."""
    numbers = (name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix))
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    shape = shapes[name]
    if len(shape) != 2:
        raise ValueError(f"{name} has shape {list(shape)}, which is no matrix")
    return shape[0], shape[1]


def _vector(shapes: Shapes, name: str) -> int:
    shape = shapes[name]
    if len(shape) != 1:
        raise ValueError(f"{name} has shape {list(shape)}, which is no vector")
    return shape[0]
