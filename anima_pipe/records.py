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

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from anima_pipe.transfer import on_device

if TYPE_CHECKING:
    import torch

LATENT_CHANNELS: Final = 16

PIXELS_PER_LATENT: Final = 8
"""Edge of the square of pixels that one latent position stands for."""

T5_LIMIT = 512
"""T5 tokens, the closing one included, that Anima was made for; longer captions are kept whole."""

DEFAULT_NEGATIVE = (
    "worst quality, low quality, score_1, score_2, score_3, blurry, jpeg artifacts, sepia"
)
"""The negative prompt of ComfyUI's Anima templates."""


MOST_PIXELS: Final = 178_956_970
"""Of a picture that is decoded, unless told otherwise; Pillow's own limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """A picture on disk, as the scan found it."""

    path: Path
    size: tuple[int, int]
    """(width, height) after EXIF rotation, in pixels."""
    content: str
    """Hash of the file's bytes."""

    @property
    def name(self) -> str:
        """What to call it in messages: its path."""
        return str(self.path)


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

    @property
    def name(self) -> str:
        """What to call it in messages: the path of the picture."""
        return str(self.image.path)


MaskChannel = Literal["red", "alpha"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRequest:
    """One mask that a dataset needs: how much each position of a latent counts in the loss."""

    key: str
    picture: Path
    """The picture that it belongs to."""
    image: ImageFile
    """What it is read from: an image of its own, or the picture itself."""
    channel: MaskChannel
    """Which channel of that is the mask; "red" of mask images, as in Kohya."""
    choice: BucketChoice
    """That of the picture, as the next two are: a mask lies over it."""
    flipped: bool = False
    interpolation: str | None = None

    @property
    def name(self) -> str:
        """What to call it in messages: the path of the picture, which cannot do without it."""
        return str(self.picture)


@dataclass(frozen=True, slots=True)
class WeightedText:
    """A prompt of which some stretches weigh more or less than others."""

    parts: tuple[tuple[str, float], ...]
    """The stretches in order, each with its weight; each is tokenised by itself."""

    def __str__(self) -> str:
        return "".join(text for text, _ in self.parts)


Text: TypeAlias = str | WeightedText
"""What is encoded: a caption, or a prompt as it has been read."""


@dataclass(frozen=True, slots=True)
class TextCondition:
    """One text as the transformer's text adapter takes it, at its real length."""

    qwen_hidden: torch.Tensor
    """Float[Lq, S]: Qwen3's last hidden states after the final norm."""
    t5_ids: torch.Tensor
    """Int32[Lt]: T5 token ids, closed by </s> (1)."""
    t5_weights: torch.Tensor | None = None
    """Float32[Lt]: factors of what the text adapter makes of each token; None: all are 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedText:
    """Captions of several samples, padded to the longest, with masks of the real tokens."""

    qwen_hidden: torch.Tensor
    """Float[B, max Lq (at least 1), S], zeros behind the real tokens."""
    qwen_mask: torch.Tensor
    """Bool[B, max Lq]. A row of False everywhere is the empty caption."""
    t5_ids: torch.Tensor
    """Int64[B, max Lt], 0 behind the real tokens."""
    t5_mask: torch.Tensor
    """Bool[B, max Lt]."""
    t5_weights: torch.Tensor | None = None
    """Float[B, max Lt]: factors of the adapter's output; None: all are 1."""

    def to(self, device: torch.device, dtype: torch.dtype) -> PaddedText:
        """Return it on a device, without waiting; hidden states and weights in another dtype."""
        weights = self.t5_weights
        return PaddedText(
            qwen_hidden=on_device(self.qwen_hidden, device, dtype),
            qwen_mask=on_device(self.qwen_mask, device),
            t5_ids=on_device(self.t5_ids, device),
            t5_mask=on_device(self.t5_mask, device),
            t5_weights=weights if weights is None else on_device(weights, device, dtype),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one forward pass sees: latents of one bucket and their captions."""

    latents: torch.Tensor
    """Float[B, 16, H, W], normalised, in the cache's dtype."""
    text: PaddedText
    weights: torch.Tensor
    """Float32[B]: factor of each sample's loss."""
    sigma_offsets: torch.Tensor
    """Float32[B]: added to the normal draw behind each sample's noise level."""
    names: tuple[str, ...]
    """The samples' file names, for messages."""
    masks: torch.Tensor | None = None
    """Float[B, H, W] in [0, 1]: how much each position counts in the loss; None: all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one optimizer step came to, over all processes."""

    loss: float | None
    """Mean over its batches, finite; None: the step was passed over, the weights are as before."""
    grad_norm: float
    """Before clipping; where the step was passed over it may be infinite or NaN."""
    learning_rates: Mapping[str, float]
    """By parameter group, that the step was to be taken with."""
    samples: int
    """In its batches."""
    batches: int = 1
    sigma_losses: Mapping[str, float] = field(default_factory=dict[str, float])
    """Mean loss by noise level, such as "0.3-0.4", where there was a sample of it; empty where the
    step was passed over."""
    grad_norms: Mapping[str, float] = field(default_factory=dict[str, float])
    """By parameter group, before clipping."""
    weight_norms: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of the trained tensors by parameter group, before the step."""
    seconds: float = 0.0
    """That the step took, without waiting for its data."""
    waited_seconds: float = 0.0
    """That it waited for its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where a run stands, as its hooks are told: before the first step and after every step."""

    step: int
    """Optimizer steps done."""
    epoch: int
    """Epochs begun, counted from 1; 0 before the first step."""
    ends_epoch: bool
    is_last: bool
    result: StepResult | None = None
    """Of the step just done; None before the first one of a run or a resumption."""
    skipped_steps: int = 0
    """Steps passed over so far, for their loss or gradient was not finite."""
    stopping: bool = False
    """The run was asked to stop after this step."""

    @property
    def after_step(self) -> bool:
        """Whether a step was just done; not so before the first one of a run or a resumption."""
        return self.result is not None

    @property
    def loss(self) -> float | None:
        """Mean loss of the step just taken; None where none was: `result` tells why."""
        return self.result.loss if self.result else None

    @property
    def step_taken(self) -> bool:
        """Whether the weights have just been trained; not so where a step was passed over."""
        return self.loss is not None

    def falls_on(self, every_n_steps: int | None, every_n_epochs: int | None) -> bool:
        """Tell whether something due every so many steps or epochs is due now."""
        if not self.after_step:
            return False
        if every_n_steps is not None and self.step % every_n_steps == 0:
            return True
        return every_n_epochs is not None and self.ends_epoch and self.epoch % every_n_epochs == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Something of the user's that could not be used, and why; counted and listed at the end."""

    name: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.name in self.reason else f"{self.name}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewPrompt:
    """One picture to be drawn while training; the defaults are those of ComfyUI's templates."""

    prompt: str
    negative: str = DEFAULT_NEGATIVE
    width: int = 1024
    height: int = 1024
    steps: int = 30
    guidance: float = 4.0
    """Classifier-free guidance; 1: none."""
    seed: int = 0
    shift: float = 3.0
