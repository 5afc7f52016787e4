"""The frozen image VAE: pictures to normalised latents, and back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from anima_pipe.encoders.exact import without_tf32
from anima_pipe.encoders.vae_layers import (
    Attention,
    Downsample,
    Head,
    ResidualBlock,
    Upsample,
)
from anima_pipe.records import PIXELS_PER_LATENT
from anima_pipe.transfer import on_device

LATENT_CHANNELS = 16

# Published with Wan 2.1 and Qwen-Image: statistics of the posterior mean over their training data.
LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    """The sizes of a VAE, as read off the shapes in its file."""

    width: int
    """Channels at full resolution; 96 as released."""
    multipliers: tuple[int, ...]
    """Width of each stage over `width`, from full resolution down; (1, 2, 4, 4) as released."""
    residual_blocks: int
    """Per stage of the encoder; the decoder has one more. 2 as released."""


class Encoder(nn.Module):
    """Pictures (B, 3, 8h, 8w) to features (B, 2 * 16, h, w)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in (1, *config.multipliers)]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            if layers:
                layers.append(Downsample(width_in))
            layers += _stage(width_in, width_out, config.residual_blocks)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1)
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(widths[-1])
        self.head = Head(widths[-1], 2 * LATENT_CHANNELS)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of pictures whose sides are multiples of 8."""
        return self.head(self.middle(self.downsamples(self.conv1(images))))


class Decoder(nn.Module):
    """Latents (B, 16, h, w) to pictures (B, 3, 8h, 8w)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in reversed(config.multipliers)]
        layers: list[nn.Module] = []
        width_in = widths[0]
        for width_out in widths:
            if layers:
                layers.append(Upsample(width_in))
                width_in //= 2
            layers += _stage(width_in, width_out, config.residual_blocks + 1)
            width_in = width_out
        self.conv1 = nn.Conv2d(LATENT_CHANNELS, widths[0], 3, padding=1)
        self.middle = _middle(widths[0])
        self.upsamples = nn.Sequential(*layers)
        self.head = Head(widths[-1], 3)
        self.reach = _reach(config)

    def forward(self, latents: torch.Tensor, tile: int | None = None) -> torch.Tensor:
        """Return the pictures, computed whole or in tiles of `tile` latent positions a side.

        Tiles change nothing but the rounding: the attention sees the whole picture either way,
        and behind it a tile is computed with everything around it that it depends on.
        """
        features = self.middle(self.conv1(latents))
        height, width = features.shape[2:]
        if tile is None or max(height, width) <= tile:
            return self._upsampled(features)
        batch, scale = features.shape[0], PIXELS_PER_LATENT
        images = features.new_empty(batch, 3, height * scale, width * scale)
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                images[
                    :, :, top * scale : (top + tile) * scale, left * scale : (left + tile) * scale
                ] = self._tile(features, top, left, tile)
        return images

    def _tile(self, features: torch.Tensor, top: int, left: int, tile: int) -> torch.Tensor:
        first_row, first_column = max(0, top - self.reach), max(0, left - self.reach)
        around = features[
            :, :, first_row : top + tile + self.reach, first_column : left + tile + self.reach
        ]
        # A copy, because the first residual block overwrites what it is given.
        image = self._upsampled(around.clone(memory_format=torch.channels_last))
        scale = PIXELS_PER_LATENT
        row, column = (top - first_row) * scale, (left - first_column) * scale
        return image[:, :, row : row + tile * scale, column : column + tile * scale]

    def _upsampled(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.upsamples(features))


class ImageVae(nn.Module):
    """Wan 2.1's VAE (also Qwen-Image's) for pictures: frozen, eight pixels to a latent position.

    Made by `anima_pipe.encoders.load_vae`.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        # Of the encoder's moments only the mean is computed: nothing here samples.
        self.conv1 = nn.Conv2d(2 * LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.conv2 = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that pictures are encoded in."""
        return self.conv1.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.conv1.weight.device

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents that the transformer works on.

        Args:
            images: Float[B, 3, 8h, 8w] in [-1, 1].

        Returns:
            Float32[B, 16, h, w]: (posterior mean - mean) / std, on the VAE's device.

        Raises:
            ValueError: The pictures have another shape or dtype.
        """
        mean = self.posterior_mean(images)
        return (mean - _per_channel(LATENTS_MEAN, mean)) / _per_channel(LATENTS_STD, mean)

    @torch.no_grad()
    @without_tf32()
    def posterior_mean(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean of the posterior, not normalised: Float32[B, 16, h, w].

        Args:
            images: Float[B, 3, 8h, 8w] in [-1, 1].

        Raises:
            ValueError: The pictures have another shape or dtype.
        """
        _check_images(images)
        return self.conv1(self.encoder(self._placed(images))).float().contiguous()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, tile: int | None = None) -> torch.Tensor:
        """Return the pictures that latents stand for.

        Args:
            latents: Float[B, 16, h, w], normalised as `encode` returns them.
            tile: Edge in pixels, a multiple of 8, of the tiles in which large pictures are
                decoded to bound memory; None decodes at once. The result is the same but for
                rounding; each tile costs a border of about 100 pixels more, so 512 is a good size.

        Returns:
            Float32[B, 3, 8h, 8w] around [-1, 1], not clamped.

        Raises:
            ValueError: The latents have another shape or dtype, or `tile` is no multiple of 8.
        """
        if latents.ndim != 4 or latents.shape[1] != LATENT_CHANNELS or not latents.numel():
            raise ValueError(
                f"latents must be (B, {LATENT_CHANNELS}, h, w), not {tuple(latents.shape)}"
            )
        if tile is not None and (tile < PIXELS_PER_LATENT or tile % PIXELS_PER_LATENT):
            raise ValueError(f"tile must be a positive multiple of {PIXELS_PER_LATENT}, not {tile}")
        latents = on_device(latents, self.device, torch.float32)
        mean = latents * _per_channel(LATENTS_STD, latents) + _per_channel(LATENTS_MEAN, latents)
        tile_latents = None if tile is None else tile // PIXELS_PER_LATENT
        return self.decoder(self.conv2(self._placed(mean)), tile_latents).float().contiguous()

    def _placed(self, x: torch.Tensor) -> torch.Tensor:
        placed = on_device(x, self.device, self.dtype)
        return placed.contiguous(memory_format=torch.channels_last)


def _stage(width_in: int, width_out: int, blocks: int) -> list[nn.Module]:
    widths = [width_in, *[width_out] * blocks]
    return [ResidualBlock(*ends) for ends in pairwise(widths)]


def _middle(width: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(width, width), Attention(width), ResidualBlock(width, width))


def _reach(config: VaeConfig) -> int:
    """How many positions away a feature behind the attention still changes a pixel."""
    convolutions = 2 * (config.residual_blocks + 1)
    rows = 1  # The head's convolution, at full resolution; then back through the stages.
    for _ in config.multipliers[1:]:
        rows += convolutions + 1  # And the one behind the doubling.
        rows = (rows + 1) // 2
    return rows + convolutions


def _per_channel(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    return on_device(torch.tensor(values).view(1, -1, 1, 1), like.device)


def _check_images(images: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"images must be (B, 3, height, width), not {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [-1, 1], not {images.dtype}")
    height, width = images.shape[2:]
    if height % PIXELS_PER_LATENT or width % PIXELS_PER_LATENT:
        raise ValueError(
            f"images of {width}x{height} pixels cannot be encoded: "
            f"both sides must be multiples of {PIXELS_PER_LATENT}"
        )
