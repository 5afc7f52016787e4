"""The parts of the diffusion transformer, named as the checkpoint names them.

Precision, everywhere in this package: matrix products and attention run in the dtype of the
weights, or in that which `masters` are cast to, normalisation and rotation in fp32. The residual
stream is kept in that dtype too, but in fp32 where it is fp16, whose range it leaves. No autocast
is relied on.

Every projection and norm is called as a module, so that an adapter may put another in its place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from torch import nn
from torch.utils.checkpoint import checkpoint

from anima_pipe.model.norms import EPSILON, RMSNorm
from anima_pipe.model.products import add_product
from anima_pipe.model.recomputed import forgetting, recomputed
from anima_pipe.model.rope import Rotation, rotate


def residual_dtype(weight_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the residual stream for weights of a dtype."""
    return torch.float32 if weight_dtype == torch.float16 else weight_dtype


class Attention(nn.Module):
    """Multi-head attention with RMS-normed queries and keys, before its output projection.

    Args:
        width: Width of the queries' tokens and of all heads together.
        source_width: Width of the tokens that are attended to.
        head_width: Width of one head.
    """

    def __init__(self, width: int, source_width: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(source_width, width, bias=False)
        self.v_proj = nn.Linear(source_width, width, bias=False)
        self.q_norm = RMSNorm(head_width)
        self.k_norm = RMSNorm(head_width)

    def attend(
        self,
        x: torch.Tensor,
        source: torch.Tensor,
        rotations: tuple[Rotation, Rotation] | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Let every token of x gather from the tokens of the source.

        Args:
            x: Float[B, N, width].
            source: Float[B, M, source width].
            rotations: Of the N queries and of the M keys.
            mask: Bool[B, 1, 1, M], False where a source token must not be seen; or
                Float[B or 1, 1, 1, M] in the dtype of the weights, added to every score of it.

        Returns:
            Float[B, N, width], the heads side by side.
        """
        of_query, of_key = rotations or (None, None)
        query = _placed(self.q_norm(self._split(self.q_proj(x))), of_query)
        key = _placed(self.k_norm(self._split(self.k_proj(source))), of_key)
        value = self._split(self.v_proj(source))
        heads = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
        )
        return heads.transpose(1, 2).flatten(2)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.head_width))


def _placed(heads: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
    """Return queries or keys, Float[B, N, heads, head width], rotated where they have a place."""
    return heads if rotation is None else recomputed(rotate, heads, rotation)


class ImageAttention(Attention):
    """Attention of a picture's tokens, to themselves or to the text."""

    def __init__(self, width: int, source_width: int, head_width: int) -> None:
        super().__init__(width, source_width, head_width)
        self.output_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        source: torch.Tensor,
        rotation: Rotation | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return Float[B, N, width] from x, Float[B, N, width], and the source, Float[B, M, ...].

        Queries and keys are rotated alike, so a rotation is for the case that x is the source. The
        mask is that of `attend`.
        """
        rotations = None if rotation is None else (rotation, rotation)
        return self.output_proj(self.attend(x, source, rotations, mask))


class Mlp(nn.Module):
    """Two linears around an exact GELU."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(width, hidden_width, bias=False)
        self.layer2 = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return Float[B, N, width] from Float[B, N, width]."""
        return self.layer2(recomputed(F.gelu, self.layer1(x)))


class TimeCondition(NamedTuple):
    """What every block learns about sigma."""

    activated: torch.Tensor
    """Float[B, width]: what each modulation is made of."""
    shared: torch.Tensor
    """Float[B, 3 x width]: added to each modulation: shift, scale, gate."""


def modulation(width: int, rank: int, parts: int) -> nn.Sequential:
    """Return the low-rank map from the activated time embedding to `parts` vectors of the width.

    The checkpoint's names count its activation, which is the same for all and applied once.
    """
    return nn.Sequential(
        nn.Identity(),
        nn.Linear(width, rank, bias=False),
        nn.Linear(rank, parts * width, bias=False),
    )


def modulated_norm(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return LayerNorm(x) * (1 + scale) + shift in the dtype of shift and scale.

    Args:
        x: Float[B, N, width], the residual stream. torch's LayerNorm computes in fp32 inside.
        shift: Float[B, 1, width].
        scale: Float[B, 1, width].
    """
    normed = recomputed(F.layer_norm, x, x.shape[-1:], None, None, EPSILON)
    return recomputed(_modulated, normed, shift, 1 + scale.to(x.dtype))


def _modulated(normed: torch.Tensor, shift: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return normed * factor + shift, Float[B, N, width] in the dtype of the shift."""
    return add_product(shift.to(normed.dtype), normed, factor).to(shift.dtype)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and mlp, each modulated by the time."""

    def __init__(
        self, width: int, context_width: int, head_width: int, adaln_width: int, mlp_width: int
    ) -> None:
        super().__init__()
        self.self_attn = ImageAttention(width, width, head_width)
        self.cross_attn = ImageAttention(width, context_width, head_width)
        self.mlp = Mlp(width, mlp_width)
        self.adaln_modulation_self_attn = modulation(width, adaln_width, 3)
        self.adaln_modulation_cross_attn = modulation(width, adaln_width, 3)
        self.adaln_modulation_mlp = modulation(width, adaln_width, 3)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor,
        time: TimeCondition,
        rotation: Rotation,
        context_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the residual stream after this block.

        Args:
            x: Float[B, N, width], the residual stream.
            context: Float[B, L, D] in the dtype of the weights.
            time: In the dtype of the weights.
            rotation: Of the N tokens.
            context_mask: Of the L positions, see `Attention.attend`. None: all of them are seen,
                the zeros behind a caption too, for the model was trained so.
        """
        shift, scale, gate = _parts(self.adaln_modulation_self_attn, time)
        normed = modulated_norm(x, shift, scale)
        x = _add_gated(x, gate, self.self_attn(normed, normed, rotation))

        shift, scale, gate = _parts(self.adaln_modulation_cross_attn, time)
        normed = modulated_norm(x, shift, scale)
        x = _add_gated(x, gate, self.cross_attn(normed, context, mask=context_mask))

        shift, scale, gate = _parts(self.adaln_modulation_mlp, time)
        return _add_gated(x, gate, self.mlp(modulated_norm(x, shift, scale)))


class FinalLayer(nn.Module):
    """From the residual stream to the numbers of each patch."""

    def __init__(self, width: int, adaln_width: int, patch_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, patch_width, bias=False)
        self.adaln_modulation = modulation(width, adaln_width, 2)

    def forward(self, x: torch.Tensor, time: TimeCondition) -> torch.Tensor:
        """Return Float[B, N, patch width] from the residual stream, Float[B, N, width]."""
        # Of the shared modulation the last layer uses shift and scale; it has no gate.
        without_gate = TimeCondition(time.activated, time.shared[:, : 2 * x.shape[-1]])
        shift, scale = _parts(self.adaln_modulation, without_gate, 2)
        return self.linear(modulated_norm(x, shift, scale))


def run_block(block: nn.Module, *inputs: object, checkpointed: bool) -> torch.Tensor:
    """Run a block, keeping only its inputs for the backward pass if it is checkpointed.

    Else it keeps what it cannot make again cheaply; see `recomputed`.
    """
    if checkpointed and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    with forgetting():
        return block(*inputs)


def _parts(modulate: nn.Module, time: TimeCondition, count: int = 3) -> tuple[torch.Tensor, ...]:
    """Return shift, scale (and gate) of one sub-layer, Float[B, 1, width] each."""
    return (modulate(time.activated) + time.shared).unsqueeze(1).chunk(count, dim=-1)


def _add_gated(x: torch.Tensor, gate: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    return add_product(x, gate.to(x.dtype), update.to(x.dtype))
