"""The text adapter: T5 token ids that read Qwen's hidden states become the text condition."""

from __future__ import annotations

import torch
from torch import nn

from anima_pipe.model.blocks import Attention, residual_dtype, run_block
from anima_pipe.model.config import LlmAdapterConfig
from anima_pipe.model.norms import RMSNorm
from anima_pipe.model.rope import Rotation, text_rotation


class TextAttention(Attention):
    """Attention of T5 tokens, to themselves or to Qwen's states."""

    def __init__(self, width: int, source_width: int, head_width: int) -> None:
        super().__init__(width, source_width, head_width)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        source: torch.Tensor,
        rotations: tuple[Rotation, Rotation],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return Float[B, Lt, width]; arguments as `attend`."""
        return self.o_proj(self.attend(x, source, rotations, mask))


class LlmAdapterBlock(nn.Module):
    """Self-attention, cross-attention and mlp, each behind its own RMSNorm."""

    def __init__(self, config: LlmAdapterConfig) -> None:
        super().__init__()
        width = config.width
        self.norm_self_attn = RMSNorm(width)
        self.self_attn = TextAttention(width, width, config.head_width)
        self.norm_cross_attn = RMSNorm(width)
        self.cross_attn = TextAttention(width, config.source_width, config.head_width)
        self.norm_mlp = RMSNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_width), nn.GELU(), nn.Linear(config.mlp_width, width)
        )

    def forward(
        self,
        x: torch.Tensor,
        source: torch.Tensor,
        rotations: tuple[Rotation, Rotation],
        masks: tuple[torch.Tensor | None, torch.Tensor | None],
    ) -> torch.Tensor:
        """Return the residual stream after this block.

        Args:
            x: Float[B, Lt, width], the residual stream.
            source: Float[B, Lq, S] in the dtype of the weights.
            rotations: Of the Lt and of the Lq positions.
            masks: Float[B, 1, 1, Lt] and Float[B, 1, 1, Lq], -inf where a token is not to be seen.
        """
        dtype = source.dtype
        own, other = rotations[0], rotations[1]
        normed = self.norm_self_attn(x).to(dtype)
        x = x + self.self_attn(normed, normed, (own, own), masks[0]).to(x.dtype)
        normed = self.norm_cross_attn(x).to(dtype)
        x = x + self.cross_attn(normed, source, (own, other), masks[1]).to(x.dtype)
        return x + self.mlp(self.norm_mlp(x).to(dtype)).to(x.dtype)


class LlmAdapter(nn.Module):
    """Real tokens only: what lies behind a caption neither is seen nor comes out."""

    def __init__(self, config: LlmAdapterConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.checkpointed = False
        self.computed_in: torch.dtype | None = None
        """What is not the dtype of the weights; None: it is."""
        self.embed = nn.Embedding(config.vocabulary, config.output_width)
        self.in_proj = (
            nn.Linear(config.output_width, config.width) if config.in_proj else nn.Identity()
        )
        self.blocks = nn.ModuleList(LlmAdapterBlock(config) for _ in range(config.blocks))
        self.out_proj = nn.Linear(config.width, config.output_width)
        self.norm = RMSNorm(config.output_width)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its arithmetic: that of the weights, under an adapter where there is one."""
        return self.computed_in or next(self.embed.parameters()).dtype

    def forward(
        self,
        qwen_hidden: torch.Tensor,
        t5_ids: torch.Tensor,
        qwen_mask: torch.Tensor | None,
        t5_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the text condition at the length of the ids.

        Args:
            qwen_hidden: Float[B, Lq, S].
            t5_ids: Int[B, Lt].
            qwen_mask: Bool[B, Lq], True for real tokens, which come first; None: all are real.
            t5_mask: Bool[B, Lt], likewise.

        Returns:
            Float[B, Lt, D] in the dtype of the weights, zero where `t5_mask` is False.
        """
        dtype = self.dtype
        source, source_seen = _source(qwen_hidden.to(dtype), qwen_mask)
        rotations = (
            text_rotation(t5_ids.shape[1], self.head_width, source.device),
            text_rotation(source.shape[1], self.head_width, source.device),
        )
        masks = (_seen(t5_mask, dtype), source_seen)
        x = self.in_proj(self.embed(t5_ids)).to(residual_dtype(dtype))
        for block in self.blocks:
            x = run_block(block, x, source, rotations, masks, checkpointed=self.checkpointed)
        condition = self.norm(self.out_proj(x.to(dtype)))
        if t5_mask is None:
            return condition
        return condition.masked_fill(~t5_mask.unsqueeze(-1), 0)


def _source(
    hidden: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the hidden states to read and which are seen, an empty caption being one zero row."""
    if hidden.shape[1] == 0:
        return hidden.new_zeros(hidden.shape[0], 1, hidden.shape[2]), None
    if mask is None:
        return hidden, None
    return hidden.masked_fill(~mask.unsqueeze(-1), 0), _seen(mask, hidden.dtype)


def _seen(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Return an attention mask over keys from a mask of real tokens.

    The first position is always seen. Where there are real tokens it is one of them; where there
    are none, softmax needs something to rest on (some attention kernels give NaN without). Asking
    which case it is would make the host wait for the GPU.

    Args:
        mask: Bool[B, keys].
        dtype: Of the attention, which would turn the mask into numbers again in every block.

    Returns:
        Float[B, 1, 1, keys], 0 where a key is seen and -inf where not.
    """
    if mask is None:
        return None
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    scores = torch.zeros_like(mask, dtype=dtype).masked_fill_(~(mask | first), -torch.inf)
    return scores[:, None, None]
