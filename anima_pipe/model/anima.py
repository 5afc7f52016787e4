"""The Anima transformer: latents, sigma and text condition in, velocity out."""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from torch import nn

from anima_pipe.model.blocks import (
    FinalLayer,
    TimeCondition,
    TransformerBlock,
    residual_dtype,
    run_block,
)
from anima_pipe.model.config import PATCH, TransformerConfig
from anima_pipe.model.embedders import PatchEmbedding, SigmaWaves, TimeModulation, from_patches
from anima_pipe.model.llm_adapter import LlmAdapter
from anima_pipe.model.masters import use_masters
from anima_pipe.model.norms import RMSNorm
from anima_pipe.model.rope import image_rotation
from anima_pipe.records import LATENT_CHANNELS

CONDITION_LENGTH = 512
"""Positions of a text condition at least; the model was trained with the zeros behind a caption."""


BLOCK_LAYERS: Final = r"blocks\.\d+\.(self_attn|cross_attn|mlp)\..*"
"""Paths of the linear layers that hold most of the weights, and bear to be kept in 8 bits; the
modulations, which steer them, and the text adapter stay as they are."""


class AnimaTransformer(nn.Module):
    """The image-only MiniTrainDIT of Cosmos-Predict2 with Anima's text adapter.

    Parameters have the names of the released checkpoints. A fresh one has random weights.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointed = False
        width = config.width
        self.x_embedder = PatchEmbedding(config.patch_width, width)
        self.t_embedder = nn.Sequential(SigmaWaves(width), TimeModulation(width))
        self.t_embedding_norm = RMSNorm(width)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, config.context_width, config.head_width, config.adaln_width, config.mlp_width
            )
            for _ in range(config.blocks)
        )
        self.final_layer = FinalLayer(width, config.adaln_width, LATENT_CHANNELS * PATCH**2)
        self.llm_adapter = LlmAdapter(config.llm_adapter)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its arithmetic: that of the weights, whatever adapters are on them."""
        return self.llm_adapter.dtype

    def compute_in(self, dtype: torch.dtype) -> None:
        """Compute in another dtype than the weights that train are kept in; see `masters`."""
        use_masters(self, dtype)
        self.llm_adapter.computed_in = dtype

    def checkpoint_blocks(self, enabled: bool) -> None:
        """Keep only the input of each block for the backward pass, and compute the rest twice."""
        self.checkpointed = enabled
        self.llm_adapter.checkpointed = enabled

    def preprocess_text_embeds(
        self,
        qwen_hidden: torch.Tensor,
        t5_ids: torch.Tensor,
        qwen_mask: torch.Tensor | None = None,
        t5_mask: torch.Tensor | None = None,
        t5_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Turn encoded captions into the text condition.

        Each caption of a batch gives what it gives alone: masked tokens are seen by nobody. A
        caption without Qwen tokens is read as one zero row.

        Args:
            qwen_hidden: Float[B, Lq, S]; Lq may be 0.
            t5_ids: Int[B, Lt].
            qwen_mask: Bool or Int[B, Lq], nonzero for real tokens, which come before the padding;
                None: all are real.
            t5_mask: Bool or Int[B, Lt], likewise.
            t5_weights: Float[B, Lt], factors of what each token becomes, for prompts such as
                `(x:1.2)`; None: all are 1.

        Returns:
            Float[B, max(512, Lt), D] in the dtype of the weights, zero behind each caption's ids.

        Raises:
            ValueError: The shapes do not fit each other or the model.
        """
        self._check_text(qwen_hidden, t5_ids, qwen_mask, t5_mask, t5_weights)
        condition = self.llm_adapter(qwen_hidden, t5_ids, _as_bool(qwen_mask), _as_bool(t5_mask))
        if t5_weights is not None:
            condition = condition * t5_weights.to(condition.dtype).unsqueeze(-1)
        missing = max(0, CONDITION_LENGTH - condition.shape[1])
        return F.pad(condition, (0, 0, 0, missing))

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        caption_length: int | None = None,
    ) -> torch.Tensor:
        """Predict the velocity, noise minus clean latent.

        Args:
            latents: Float[B, 16, H, W], H and W even.
            timesteps: Float[B], sigma in [0, 1]; kept in fp32 into its sinusoid.
            context: Float[B, L, D], from `preprocess_text_embeds`. Zeros that lie both behind a
                caption and behind position 512 are there for longer captions of the batch, and are
                not seen: each caption gives what it gives alone.
            caption_length: Positions from which on the context is zero for the whole batch; None:
                they are counted where that saves time.

        Returns:
            Float[B, 16, H, W] in the dtype of the latents.

        Raises:
            ValueError: The shapes do not fit each other or the model.
        """
        self._check_latents(latents, timesteps, context)
        dtype = self.dtype
        rows, columns = latents.shape[2] // PATCH, latents.shape[3] // PATCH
        rotation = image_rotation(rows, columns, self.config.head_width, latents.device)
        time = self._time_condition(timesteps)
        context, mask = _condensed(context.to(dtype), caption_length)
        x = self.x_embedder(latents.to(dtype)).to(residual_dtype(dtype))
        for block in self.blocks:
            x = run_block(block, x, context, time, rotation, mask, checkpointed=self.checkpointed)
        return from_patches(self.final_layer(x, time), rows, columns).to(latents.dtype)

    def _time_condition(self, sigma: torch.Tensor) -> TimeCondition:
        waves = self.t_embedder[0](sigma)
        return TimeCondition(
            activated=F.silu(self.t_embedding_norm(waves).to(self.dtype)),
            shared=self.t_embedder[1](waves.to(self.dtype)),
        )

    def _check_latents(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor
    ) -> None:
        shape = latents.shape
        if latents.ndim != 4 or shape[1] != LATENT_CHANNELS:
            raise ValueError(f"latents of shape {list(shape)} are not (B, {LATENT_CHANNELS}, H, W)")
        if shape[2] % PATCH or shape[3] % PATCH or not shape[2] * shape[3]:
            raise ValueError(
                f"latents of height {shape[2]} and width {shape[3]} do not divide into patches of "
                f"{PATCH} x {PATCH}: pictures must be multiples of 16 pixels"
            )
        if timesteps.shape != shape[:1]:
            raise ValueError(f"{shape[0]} latents need that many timesteps, not {timesteps.shape}")
        wanted = self.config.context_width
        if context.ndim != 3 or context.shape[0] != shape[0] or context.shape[2] != wanted:
            raise ValueError(
                f"context of shape {list(context.shape)} is not ({shape[0]}, L, {wanted})"
            )

    def _check_text(
        self,
        qwen_hidden: torch.Tensor,
        t5_ids: torch.Tensor,
        qwen_mask: torch.Tensor | None,
        t5_mask: torch.Tensor | None,
        t5_weights: torch.Tensor | None,
    ) -> None:
        wanted = self.config.llm_adapter.source_width
        if qwen_hidden.ndim != 3 or qwen_hidden.shape[2] != wanted:
            raise ValueError(
                f"qwen_hidden of shape {list(qwen_hidden.shape)} is not (B, Lq, {wanted})"
            )
        if t5_ids.ndim != 2 or t5_ids.shape[0] != qwen_hidden.shape[0] or not t5_ids.shape[1]:
            raise ValueError(
                f"t5_ids of shape {list(t5_ids.shape)} are not ({qwen_hidden.shape[0]}, Lt), Lt > 0"
            )
        if qwen_mask is not None and qwen_mask.shape != qwen_hidden.shape[:2]:
            raise ValueError(f"qwen_mask of shape {list(qwen_mask.shape)} does not fit qwen_hidden")
        if t5_mask is not None and t5_mask.shape != t5_ids.shape:
            raise ValueError(f"t5_mask of shape {list(t5_mask.shape)} does not fit t5_ids")
        if t5_weights is not None and t5_weights.shape != t5_ids.shape:
            raise ValueError(f"t5_weights of shape {list(t5_weights.shape)} do not fit t5_ids")


class TextConditionedTransformer(nn.Module):
    """Text adapter and transformer as one call.

    Gradient synchronisation between processes hangs on `forward`: what is computed outside it, by
    a method of the wrapped module, is not synchronised.
    """

    def __init__(self, transformer: AnimaTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        latents: torch.Tensor,
        sigma: torch.Tensor,
        qwen_hidden: torch.Tensor,
        t5_ids: torch.Tensor,
        qwen_mask: torch.Tensor | None = None,
        t5_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the velocity from encoded captions; arguments as the transformer's two calls."""
        context = self.transformer.preprocess_text_embeds(qwen_hidden, t5_ids, qwen_mask, t5_mask)
        # Told, and not counted: the host would have to wait for the numbers.
        return self.transformer(latents, sigma, context, t5_ids.shape[1])


def _condensed(
    context: torch.Tensor, caption_length: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a condition that cross-attention reads as it does the whole one, and its mask.

    The zeros behind the captions of a batch are alike, and n keys that are alike weigh as much as
    one with log(n) added to its score: a processor computes that one. On a GPU attention without
    a mask is faster. In fp16 the gradient of the one key would be that of all n together, and leave
    its range.

    Args:
        context: Float[B, L, D], from `preprocess_text_embeds`.
        caption_length: Positions from which on it is zero; None: they are counted.

    Returns:
        Float[B, M, D], and a mask over its positions, as `Attention.attend` takes it.
    """
    length = context.shape[1]
    is_slow = context.device.type == "cpu" and context.dtype != torch.float16
    if length > CONDITION_LENGTH or not is_slow:
        return context, _positions_seen(context)
    used = _used(context) if caption_length is None else min(caption_length, length)
    if length - used < 2:
        return context, None
    scores = context.new_zeros(used + 1)
    scores[used] = math.log(length - used)
    # Contiguous, or else every layer that reads it would copy it for itself.
    return context[:, : used + 1].contiguous(), scores[None, None, None]


def _used(context: torch.Tensor) -> int:
    """Return how many positions there are up to the last that is not zero in all of a batch."""
    places = (context != 0).any(dim=-1).any(dim=0).nonzero()
    return int(places[-1]) + 1 if len(places) else 0


def _positions_seen(context: torch.Tensor) -> torch.Tensor | None:
    """Return which positions cross-attention sees, Bool[B, 1, 1, L]; None: all of them.

    A caption ends with its last row that is not zero, for its closing token never is: rows before
    it may be, where a prompt gives tokens the weight 0.

    Args:
        context: Float[B, L, D], from `preprocess_text_embeds`.
    """
    if context.shape[1] <= CONDITION_LENGTH:
        return None
    places = torch.arange(context.shape[1], device=context.device)
    last = ((context != 0).any(dim=-1) * places).amax(dim=1, keepdim=True)
    return (places <= last.clamp(min=CONDITION_LENGTH - 1))[:, None, None]


def _as_bool(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask != 0
