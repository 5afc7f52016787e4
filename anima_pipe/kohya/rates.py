"""From resolved options to learning rates: the adapter's, and those of parts of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anima_pipe.kohya.resolved import Resolved

if TYPE_CHECKING:
    from anima_pipe.trained import PartRate

PARTS: Final = {
    "llm_adapter": r"llm_adapter\..*",
    "self_attn": r"blocks\.\d+\.self_attn\..*",
    "cross_attn": r"blocks\.\d+\.cross_attn\..*",
    "mlp": r"blocks\.\d+\.mlp\..*",
    "mod": r".*adaln_modulation.*",
}
"""Kohya's parts of the model, each with an option NAME_lr, and the paths of their modules."""


def part_rates(options: Resolved) -> tuple[PartRate, ...]:
    """Return the parts of the model that take a learning rate of their own."""
    from anima_pipe.trained import PartRate

    rates = {part: options.value(f"{part}_lr") for part in PARTS}
    return tuple(
        PartRate(name=part, pattern=PARTS[part], rate=rate)
        for part, rate in rates.items()
        if rate is not None
    )


def learning_rate(options: Resolved) -> float:
    """Return the adapter's learning rate; unet_lr wins, as in Kohya."""
    rate: float | None = options.value("unet_lr")
    return options.value("learning_rate") if rate is None else rate
