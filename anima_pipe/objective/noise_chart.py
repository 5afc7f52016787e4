"""A chart of the noise levels that a run would draw, and of what each weighs in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from anima_pipe.objective.flow_loss import WEIGHTINGS, ObjectiveConfig
from anima_pipe.objective.sigmas import sample_sigmas

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWS: Final = 200_000
BINS: Final = 20
LATENT_STEP: Final = 8
"""Pixels per latent pixel."""

QUANTILES: Final = (0.1, 0.5, 0.9)

_WIDEST_BAR: Final = 40
"""Characters."""

_PLOT: Final = (60, 60, 760, 380)
"""Left, top, right and bottom of the drawing's plot, in pixels."""
_SIZE: Final = (800, 440)
_INK, _GRID, _BARS, _LINE = "#222222", "#dddddd", "#7aa6d8", "#d9622b"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseChart:
    """What a large number of draws came to."""

    shares: tuple[float, ...]
    """Of the draws in each of `BINS` equal bins from sigma 0 to 1; they sum to 1."""
    weights: tuple[float, ...]
    """Mean factor of the loss in each bin; in the middle of it where nothing was drawn."""
    mean: float
    quantiles: tuple[float, ...]
    """At `QUANTILES`."""

    @property
    def weighted_shares(self) -> tuple[float, ...]:
        """Shares of the bins in the sum of all weights: what training sees of each."""
        products = [s * w for s, w in zip(self.shares, self.weights, strict=True)]
        return tuple(product / sum(products) for product in products)


def chart_noise_levels(
    config: ObjectiveConfig, image_size: tuple[int, int], *, offset: float = 0.0, seed: int = 0
) -> NoiseChart:
    """Draw noise levels as training does, very often.

    Args:
        config: The run's objective.
        image_size: (width, height) in pixels, on which a shift by size depends.
        offset: Of the samples, see `sample_sigmas`.
        seed: Of the draws.
    """
    width, height = image_size
    shape = (DRAWS, 16, height // LATENT_STEP, width // LATENT_STEP)
    generator = torch.Generator().manual_seed(seed)
    sigmas = sample_sigmas(shape, config.sigmas, generator, torch.full((DRAWS,), offset))
    weigh = WEIGHTINGS[config.loss.weighting]
    bins = (sigmas * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(bins, minlength=BINS)
    sums = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, weigh(sigmas).double())
    middles = (torch.arange(BINS) + 0.5) / BINS
    weights = torch.where(counts > 0, sums / counts.clamp(min=1), weigh(middles).double())
    return NoiseChart(
        shares=tuple((counts / DRAWS).tolist()),
        weights=tuple(weights.tolist()),
        mean=sigmas.mean().item(),
        quantiles=tuple(sigmas.quantile(torch.tensor(QUANTILES)).tolist()),
    )


def chart_as_text(chart: NoiseChart) -> list[str]:
    """Lay the chart out in lines: each bin's share of the draws, its weight, and a bar."""
    lines = [_summary(chart), "sigma        share  weight  weighted"]
    most = max(chart.shares)
    rows = zip(chart.shares, chart.weights, chart.weighted_shares, strict=True)
    for place, (share, weight, weighted) in enumerate(rows):
        bar = "#" * round(_WIDEST_BAR * share / most)
        bounds = f"{place / BINS:.2f} - {(place + 1) / BINS:.2f}"
        lines.append(f"{bounds} {share:6.1%} {weight:7.3f} {weighted:9.1%}  {bar}".rstrip())
    return lines


def chart_as_picture(chart: NoiseChart, title: str) -> Image:
    """Draw the shares as bars and the weights as a line, each to its own height."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = _PLOT
    step = (right - left) / BINS
    for tenth in range(11):
        x = left + (right - left) * tenth / 10
        draw.line((x, top, x, bottom), fill=_GRID)
        draw.text((x, bottom + 6), f"{tenth / 10:g}", fill=_INK, anchor="ma")
    most, heaviest = max(chart.shares), max(chart.weights)
    for place, share in enumerate(chart.shares):
        if not share:
            continue
        x = left + place * step
        draw.rectangle(
            (x + 1, bottom - (bottom - top) * share / most, x + step - 1, bottom), fill=_BARS
        )
    heights = [bottom - (bottom - top) * weight / heaviest for weight in chart.weights]
    points = [(left + (place + 0.5) * step, y) for place, y in enumerate(heights)]
    draw.line(points, fill=_LINE, width=3)
    draw.text((left, 12), title, fill=_INK)
    draw.text((left, 28), _summary(chart), fill=_INK)
    draw.text((left, top - 14), f"share of draws, up to {most:.1%}", fill=_BARS)
    draw.text((right, top - 14), f"weight, up to {heaviest:.3g}", fill=_LINE, anchor="ra")
    draw.text(((left + right) / 2, bottom + 26), "sigma: 0 clean, 1 noise", fill=_INK, anchor="ma")
    return picture


def _summary(chart: NoiseChart) -> str:
    levels = zip(QUANTILES, chart.quantiles, strict=True)
    below = ", ".join(f"{share:.0%} below {level:.3f}" for share, level in levels)
    return f"mean {chart.mean:.3f}; {below}"
