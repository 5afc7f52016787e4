"""From resolved options to learning rates: the run's, and those of parts of the model."""

from __future__ import annotations

from anima_pipe.kohya.resolved import Resolved
from anima_pipe.model.config import PARTS
from anima_pipe.trained import PartRate


def part_rates(options: Resolved) -> tuple[PartRate, ...]:
    """Return the parts of the model that take a learning rate of their own."""
    rates = {part: options.value(f"{part}_lr") for part in PARTS}
    return tuple(
        PartRate(name=part, pattern=PARTS[part], rate=rate)
        for part, rate in rates.items()
        if rate is not None
    )


def learning_rate(options: Resolved) -> float:
    """Return the run's learning rate; unet_lr wins, as in Kohya."""
    rate: float | None = options.value("unet_lr")
    return options.value("learning_rate") if rate is None else rate
