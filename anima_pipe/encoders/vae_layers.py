"""The layers of the VAE, in two dimensions and over bands of rows.

Wan 2.1 is a video network. For one frame its causal 3x3x3 convolutions see two frames of zeros
and then the picture, so each equals the 3x3 convolution with its last temporal slice; its norms
work on each pixel by itself. Everything but the attention in the middle is therefore local, and
each layer runs over bands of rows that stay in the processor's cache: the same numbers, less
time, and no second full-size tensor in memory.

Modules carry the names of the checkpoint, and tensors are (B, channels, rows, columns) in
channels_last memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

from anima_pipe.encoders.row_winograd import RowWinograd

CPU_BAND_BYTES = 8 * 2**20
"""Size of a band: some of them fit the last cache of a desktop processor (4 to 32 MiB measured
within 10 % of each other)."""
DEVICE_BAND_BYTES = 256 * 2**20
"""On a GPU a band must keep every unit busy; it only bounds the memory for large pictures."""
FEWEST_ROWS = 8
"""Below this the rows that neighbouring bands both compute cost more than memory is worth."""


class ChannelNorm(nn.Module):
    """Scale every pixel's channels to unit length, then each channel by its gain.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # fp32 whatever the dtype of the convolutions: it multiplies an fp32 quotient.
        self.gamma = nn.Parameter(torch.empty(channels, 1, 1, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x / |x| * gamma in fp32, a new tensor; pixels of zeros stay zeros."""
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        return (x * length.clamp_min_(1e-12).reciprocal_()).mul_(self.gamma)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut where the width changes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": ChannelNorm(channels_in),
                "2": _conv3x3(channels_in, channels_out),
                "3": ChannelNorm(channels_out),
                "6": _conv3x3(channels_out, channels_out),
            }
        )
        self.shortcut = (
            nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output; x is overwritten by it where the width stays."""
        if self.shortcut is not None:
            return self._widened(x, self.shortcut)
        change_of = self._change_of(x)
        waiting: tuple[torch.Tensor, torch.Tensor] | None = None
        for first, last in row_bands(x, x.shape[1]):
            change = change_of(first, last)
            # One band late: the band just computed still needed the last rows of the one before.
            if waiting:
                waiting[0].add_(waiting[1])
            waiting = x[:, :, first:last], change
        if waiting:
            waiting[0].add_(waiting[1])
        return x

    def _widened(self, x: torch.Tensor, shortcut: nn.Conv2d) -> torch.Tensor:
        change_of = self._change_of(x)

        def produce(first: int, last: int) -> torch.Tensor:
            return change_of(first, last).add_(shortcut(x[:, :, first:last]))

        channels = shortcut.out_channels
        return fill_in_bands(_empty_like(x, channels=channels), max(channels, x.shape[1]), produce)

    def _change_of(self, x: torch.Tensor) -> Callable[[int, int], torch.Tensor]:
        """Return what computes, from the rows first up to last and two around, their change."""
        convolutions = [_for_bands(self.residual[name]) for name in ("2", "6")]

        def change(first: int, last: int) -> torch.Tensor:
            hidden = _silu_of(self.residual["0"], _rows_around(x, first, last, halo=2))
            hidden = convolutions[0](hidden)
            # Rows beyond the picture are the second one's padding, not the first one's output.
            if first == 0:
                hidden[:, :, 0] = 0
            if last == x.shape[2]:
                hidden[:, :, -1] = 0
            return convolutions[1](_silu_of(self.residual["3"], hidden))

        return change


class Attention(nn.Module):
    """Single-head self-attention over all pixels, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x + proj(attention(norm(x)))."""
        qkv = self.to_qkv(self.norm(x).to(x.dtype)).flatten(2).transpose(1, 2).unsqueeze(1)
        mixed = functional.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return x + self.proj(mixed.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halve rows and columns by a strided convolution that looks right and down only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, channels, rows / 2, columns / 2) of an even number of rows and columns."""

        def produce(first: int, last: int) -> torch.Tensor:
            band = x[:, :, 2 * first : 2 * last + 1]
            below = 2 * (last - first) + 1 - band.shape[2]
            return self.resample["1"](functional.pad(band, (0, 1, 0, below)))

        channels, height, width = x.shape[1:]
        half = _empty_like(x, size=(height // 2, width // 2))
        return fill_in_bands(half, 4 * channels, produce)


class Upsample(nn.Module):
    """Double rows and columns by repetition, then halve the channels by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": _conv3x3(channels, channels // 2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, channels / 2, 2 * rows, 2 * columns)."""
        convolution = _for_bands(self.resample["1"])

        def produce(first: int, last: int) -> torch.Tensor:
            band = _rows_around(x, first // 2, last // 2, halo=1)
            return convolution(functional.interpolate(band, scale_factor=2.0)[:, :, 1:-1])

        channels, height, width = x.shape[1:]
        wide = _empty_like(x, channels=channels // 2, size=(2 * height, 2 * width))
        return fill_in_bands(wide, channels, produce)


class Head(nn.Module):
    """The last layer of the encoder and of the decoder: conv(silu(norm(x)))."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.add_module("0", ChannelNorm(channels_in))
        self.add_module("2", _conv3x3(channels_in, channels_out))
        self.channels_out = channels_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, channels_out, rows, columns)."""
        norm, convolution = self.children()

        def produce(first: int, last: int) -> torch.Tensor:
            return convolution(_silu_of(norm, _rows_around(x, first, last, halo=1)))

        return fill_in_bands(_empty_like(x, channels=self.channels_out), x.shape[1], produce)


def row_bands(x: torch.Tensor, channels: int) -> Iterator[tuple[int, int]]:
    """Cut the rows of x into bands of a suitable size.

    Args:
        x: What is cut; only its device, dtype and shape matter.
        channels: The most numbers per pixel of x that a layer holds at a time in one tensor.

    Yields:
        The first row of each band and the one past its last.
    """
    budget = CPU_BAND_BYTES if x.device.type == "cpu" else DEVICE_BAND_BYTES
    batch, _, height, width = x.shape
    # Even, because two rows of an upsampled picture come from one.
    rows = max(FEWEST_ROWS, budget // (batch * channels * width * x.element_size()) // 2 * 2)
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def fill_in_bands(
    out: torch.Tensor, channels: int, produce: Callable[[int, int], torch.Tensor]
) -> torch.Tensor:
    """Fill `out` with what `produce(first row, one past last)` returns for each band of it."""
    for first, last in row_bands(out, channels):
        out[:, :, first:last] = produce(first, last)
    return out


def _rows_around(x: torch.Tensor, first: int, last: int, *, halo: int) -> torch.Tensor:
    """Return rows first - halo .. last + halo of x, zeros where the picture has none."""
    above, below = max(0, halo - first), max(0, last + halo - x.shape[2])
    band = x[:, :, first - halo + above : last + halo - below]
    return functional.pad(band, (0, 0, above, below)) if above or below else band


def _silu_of(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return functional.silu(norm(x), inplace=True).to(x.dtype)


def _for_bands(convolution: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a convolution from `_conv3x3` in the form that is fastest for many bands."""
    assert isinstance(convolution, nn.Conv2d)
    return RowWinograd(convolution) if RowWinograd.suits(convolution) else convolution


def _conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that pads columns only: the bands bring the rows around them."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=(0, 1))


def _empty_like(
    x: torch.Tensor, *, channels: int | None = None, size: tuple[int, int] | None = None
) -> torch.Tensor:
    channels = x.shape[1] if channels is None else channels
    shape = (x.shape[0], channels, *(size or x.shape[2:]))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
