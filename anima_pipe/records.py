"""READ FIRST: the records that travel through the pipeline, and the letters of every tensor axis.

    B   samples in a batch
    C   latent channels (16)
    H,W latent height and width: pixels / 8, always even; images say (height, width) in pixels
    Lq  Qwen tokens of a caption, 0 for the empty caption        S  width of Qwen's hidden states
    Lt  T5 tokens of a caption, at least 1 (the closing </s>)    D  width of the text condition
    L   positions of the text condition: max(512, Lt)

Sizes of pictures are (width, height) in pixels everywhere, as PIL and Kohya say them; tensors are
(height, width), as torch says them. Sigma is 0 for a clean latent and 1 for pure noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A picture on disk, as the scan found it."""

    path: Path
    size: tuple[int, int]
    """(width, height) after EXIF rotation, in pixels."""
    content: str
    """Hash of the file's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketChoice:
    """How one picture is brought to the size of its bucket: resize to cover it, then crop."""

    bucket: tuple[int, int]
    """(width, height) that the VAE sees."""
    resized: tuple[int, int]
    """(width, height) after resizing, at least the bucket's."""
    crop: tuple[int, int]
    """(left, top) of the bucket within the resized picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentRequest:
    """One latent that a dataset needs: which pixels, and the key they are cached under."""

    key: str
    image: ImageFile
    choice: BucketChoice
    flipped: bool = False
    """Mirrored left to right before encoding."""
    interpolation: str | None = None
    """Resampling filter by Kohya's name; None: area to shrink, lanczos to enlarge."""


@dataclass(frozen=True, slots=True)
class TextCondition:
    """One caption as the transformer's text adapter takes it, at its real length."""

    qwen_hidden: torch.Tensor
    """Float[Lq, S]: Qwen3's last hidden states after the final norm."""
    t5_ids: torch.Tensor
    """Int32[Lt]: T5 token ids, closed by </s> (1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one training step sees: latents of one bucket and their captions, padded with masks."""

    latents: torch.Tensor
    """Float[B, 16, H, W], normalised."""
    qwen_hidden: torch.Tensor
    """Float[B, max Lq (at least 1), S], zeros behind the real tokens."""
    qwen_mask: torch.Tensor
    """Bool[B, max Lq]: real tokens. A row of False everywhere is the empty caption."""
    t5_ids: torch.Tensor
    """Int[B, max Lt], 0 behind the real tokens."""
    t5_mask: torch.Tensor
    """Bool[B, max Lt]."""
    loss_weights: torch.Tensor
    """Float[B]: weight of each sample's loss, 1 unless its subset says otherwise."""
    names: tuple[str, ...]
    """The samples' file names, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Something of the user's that could not be used, and why; counted and listed at the end."""

    name: str
    reason: str
