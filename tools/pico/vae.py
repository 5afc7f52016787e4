"""Train the embedded model's VAE: Wan 2.1's architecture, narrow, on pictures of the world.

`anima_pipe.encoders` runs that network in bands of rows and in place, which has no gradients. Here
the same modules, with the same names, are run the plain way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from anima_pipe.demo.layouts import LATENT_CHANNELS, vae_shapes
from anima_pipe.encoders.vae import LATENTS_MEAN, LATENTS_STD, Encoder, ImageVae, VaeConfig
from anima_pipe.encoders.vae_layers import (
    Attention,
    ChannelNorm,
    Downsample,
    Head,
    ResidualBlock,
    Upsample,
)
from anima_pipe.files import published
from anima_pipe.hooks.train_state import Stateful
from anima_pipe.runtime import derive_seed
from anima_pipe.weights.writing import write_tensors

STATE: Final = "vae.pt"
REPORT_EVERY: Final = 100
MEASURED: Final = 512
"""Pictures over which the latents' channels are measured."""
KL_WEIGHT: Final = 5e-4
"""Against the mean absolute error of values in [-1, 1]: latents come out near a unit normal, which
is what a flow model learns most easily, at hardly any cost in sharpness."""
COLOUR_WEIGHT: Final = 2.0
"""Of the error of means over 8x8 pixels: a hue that is a little off costs pixels next to nothing,
and is what one sees first."""
EDGE_WEIGHT: Final = 0.5
"""Of the error of the differences between neighbouring pixels: lines stay lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeTraining:
    """How long, on what and how fast."""

    width: int = 12
    steps: int = 12_000
    batch: int = 16
    crop: int = 64
    """Side of the crops that are trained on: all but one layer see a few pixels far."""
    learning_rate: float = 2e-3
    seed: int = 0
    compiled: bool = False
    """Whether torch.compile makes the step."""


class TrainableVae(nn.Module):
    """The VAE with gradients, and with the posterior's spread, which the frozen one never asks for.

    Latents are normalised here: their target is the unit normal. `save_vae` folds that away.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vae = ImageVae(VaeConfig(width=width, multipliers=(1, 2, 4, 4), residual_blocks=2))
        self.spread = nn.Conv2d(2 * LATENT_CHANNELS, LATENT_CHANNELS, 1)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log-variance of the posterior, both (B, 16, h, w)."""
        features = _features(self.vae.encoder, images)
        return self.vae.conv1(features), self.spread(features).clamp(-12, 4)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return pictures (B, 3, 8h, 8w) around [-1, 1]."""
        decoder = self.vae.decoder
        hidden = _run_all(decoder.middle, _padded_conv(decoder.conv1, self.vae.conv2(latents)))
        return _run_module(decoder.head, _run_all(decoder.upsamples, hidden))

    def loss(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, and the mean squared error that it holds."""
        mean, log_variance = self.encode(images)
        latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        difference = self.decode(latents) - images
        squared = difference.square().mean()
        error = difference.abs().mean() + squared + EDGE_WEIGHT * _edges(difference)
        error = error + COLOUR_WEIGHT * functional.avg_pool2d(difference, 8).abs().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return error + KL_WEIGHT * kl, squared.detach()


def _edges(difference: torch.Tensor) -> torch.Tensor:
    rows = (difference[:, :, 1:] - difference[:, :, :-1]).abs().mean()
    columns = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    return rows + columns


def _features(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    hidden = _run_all(encoder.downsamples, _padded_conv(encoder.conv1, images))
    return _run_module(encoder.head, _run_all(encoder.middle, hidden))


def _run_all(modules: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for module in modules.children():
        x = _run_module(module, x)
    return x


def _run_module(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    match module:
        case ResidualBlock():
            parts = module.residual
            hidden = _padded_conv(parts["2"], functional.silu(_norm(parts["0"], x)))
            hidden = _padded_conv(parts["6"], functional.silu(_norm(parts["3"], hidden)))
            return hidden + (x if module.shortcut is None else module.shortcut(x))
        case Attention():
            return x + module.proj(_attended(module, x))
        case Downsample():
            return module.resample["1"](functional.pad(x, (0, 1, 0, 1)))
        case Upsample():
            return _padded_conv(module.resample["1"], functional.interpolate(x, scale_factor=2.0))
        case Head():
            norm, convolution = module.children()
            return _padded_conv(convolution, functional.silu(_norm(norm, x)))
        case _:
            raise TypeError(f"{type(module).__name__} is no layer of the VAE")


def _attended(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    qkv = attention.to_qkv(_norm(attention.norm, x)).flatten(2).transpose(1, 2).unsqueeze(1)
    mixed = functional.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
    return mixed.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])


def _norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    assert isinstance(norm, ChannelNorm)
    return functional.normalize(x, dim=1, eps=1e-6) * norm.gamma


def _padded_conv(convolution: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run a 3x3 convolution over x with zeros around it, whatever padding it has of its own."""
    assert isinstance(convolution, nn.Conv2d)
    return functional.conv2d(x, convolution.weight, convolution.bias, padding=1)


def train_vae(training: VaeTraining, pictures: np.ndarray, folder: Path) -> TrainableVae:
    """Train a VAE, from where it was left if it was.

    Args:
        training: How.
        pictures: UInt8[N, H, W, 3], drawn by the world's painter.
        folder: Gets vae.pt, to go on from, and vae.log.
    """
    torch.manual_seed(training.seed)
    model = TrainableVae(training.width)
    _start(model)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), training.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, total_steps=training.steps, pct_start=0.05
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first = _resumed(folder / STATE, parts)
    total = 0.0
    loss_of = torch.compile(model.loss) if training.compiled else model.loss
    for step in range(first, training.steps):
        torch.manual_seed(derive_seed("vae", training.seed, step))
        loss, squared = loss_of(_crops(training, pictures, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += squared.item()
        if (step + 1) % REPORT_EVERY == 0:
            with (folder / "vae.log").open("a", encoding="utf-8") as log:
                mean = total / REPORT_EVERY
                log.write(f"step {step + 1} loss {loss.item():.4f} PSNR {psnr(mean):.2f}\n")
            total = 0.0
            _keep(folder / STATE, parts, step + 1)
    return model


def _resumed(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Put a kept state back where there is one; return the steps done."""
    if not path.exists():
        return 0
    kept = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(kept[name])
    return kept["step"]


def _keep(path: Path, parts: Mapping[str, Stateful], step: int) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    with published(path) as unfinished:
        torch.save({**state, "step": step}, unfinished)


def psnr(squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of values in [-1, 1]."""
    return 10 * math.log10(4 / squared_error)


def _start(model: TrainableVae) -> None:
    """Give norms their unit, and the ends of residual branches a small start."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            width = parameter.shape[0]
            # The norm scales to unit length: this brings each channel to unit size.
            nn.init.constant_(parameter, math.sqrt(width))
        elif name.endswith("residual.6.weight"):
            parameter.data.mul_(0.2)


def _crops(training: VaeTraining, pictures: np.ndarray, step: int) -> torch.Tensor:
    """Return a batch Float32[B, 3, crop, crop] in [-1, 1], in colours beyond the world's too."""
    rng = np.random.default_rng((training.seed, step))
    side = training.crop
    batch = np.empty((training.batch, side, side, 3), np.float32)
    for row in range(training.batch):
        picture = pictures[rng.integers(len(pictures))]
        top, left = rng.integers(0, pictures.shape[1] - side + 1, 2)
        crop = picture[top : top + side, left : left + side]
        batch[row] = recoloured(crop[:, :: rng.choice((-1, 1))], rng)
    images = torch.from_numpy(batch / 127.5 - 1).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def recoloured(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return most crops as they are, and others with their channels mixed.

    What a user's own pictures hold is not in the world's palette: the VAE shall know all colours.
    """
    if rng.random() < 0.7:
        return crop
    mixed = crop[..., rng.permutation(3)].astype(np.float32)
    if rng.random() < 0.5:
        matrix = np.eye(3) + rng.normal(0, 0.35, (3, 3))
        matrix /= matrix.sum(axis=1, keepdims=True)
        mixed = mixed @ matrix.astype(np.float32).T
    return np.clip(mixed * rng.uniform(0.7, 1.1), 0, 255)


def save_vae(
    model: TrainableVae,
    pictures: np.ndarray,
    path: Path,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the VAE with Wan's key names and three-dimensional kernels.

    Users subtract Wan's mean from what the encoder says and divide by its deviation. The last layer
    of the encoder and the first of the decoder take a scale and a shift into themselves so that
    what users get has mean 0 and deviation 1 in every channel.

    Args:
        model: What was trained.
        pictures: UInt8[N, H, W, 3], over which the channels are measured.
        path: The file.
        dtype: Of its tensors.
    """
    flat = {name: tensor.detach().float() for name, tensor in model.vae.state_dict().items()}
    mean, deviation = _channels(model, pictures)
    scale = torch.tensor(LATENTS_STD) / deviation
    shift = torch.tensor(LATENTS_MEAN) - mean * scale
    spread = model.spread
    assert spread.bias is not None
    weight, bias = flat["conv1.weight"], flat["conv1.bias"]
    flat["conv1.weight"] = torch.cat([weight * scale.view(-1, 1, 1, 1), spread.weight.detach()])
    flat["conv1.bias"] = torch.cat([bias * scale + shift, spread.bias.detach() + 2 * scale.log()])
    flat["conv2.weight"] = flat["conv2.weight"] / scale.view(1, -1, 1, 1)
    flat["conv2.bias"] = flat["conv2.bias"] - flat["conv2.weight"][:, :, 0, 0] @ shift
    # Wan's norm scales to the root of the width, not to 1; loading takes that into gamma.
    gammas = {name: value for name, value in flat.items() if name.endswith("gamma")}
    flat |= {name: value / math.sqrt(len(value)) for name, value in gammas.items()}
    tensors = {
        name: _in_three_dimensions(flat.get(name), shape).to(dtype).contiguous()
        for name, shape in vae_shapes(model.vae.config.width).items()
    }
    write_tensors(path, dict(sorted(tensors.items())), {"format": "pt"})


@torch.no_grad()
def _channels(model: TrainableVae, pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of every channel of the latents, both Float32[16]."""
    means: list[torch.Tensor] = []
    for first in range(0, min(len(pictures), MEASURED), 16):
        pixels = torch.from_numpy(pictures[first : first + 16] / 127.5 - 1).float()
        means.append(model.encode(pixels.permute(0, 3, 1, 2))[0])
    latents = torch.cat(means).transpose(0, 1).flatten(1)
    return latents.mean(1), latents.std(1)


def _in_three_dimensions(flat: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a kernel whose last temporal slice is the flat one, which is what one frame meets."""
    tensor = torch.zeros(shape)
    if flat is None:
        return tensor
    if tensor.ndim < 5:
        return flat.view(shape).clone()
    tensor[:, :, -1] = flat.view(*flat.shape[:2], *flat.shape[-2:])
    return tensor
