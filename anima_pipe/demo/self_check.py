"""A small forward pass of every part, on the embedded model, against numbers that are stored here.

They tell whether this machine's torch computes what it should: a broken build, a wrong driver or a
faulty device shows here and not as a bad adapter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from anima_pipe.demo import DEMO_QWEN, DEMO_T5_TOKENIZER, DEMO_TRANSFORMER, DEMO_VAE

if TYPE_CHECKING:
    import torch

TOLERANCE: Final = 5e-3
"""Of the largest stored number: what TF32 and other orders of summation may change, and more."""

STORED: Final[dict[str, tuple[float, ...]]] = {
    "VAE": (0.499503, 0.28991, 0.41332, 0.329296, 0.135331, 0.122346, 0.452335),
    "text encoder": (-0.0136873, 0.855592, -0.248248, 1.34801, 0.414532, -0.454429, 1.0),
    "transformer": (-0.429127, 0.55655, -0.476347, 0.557913, -0.348874, 0.509051, 0.69604),
}
"""First numbers of each part's result in fp32 on a processor, then their root mean square."""

_KEPT: Final = 6
_CAPTION: Final = "a small fox in the snow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How one part did."""

    part: str
    difference: float
    """Largest, relative to the largest stored number; not a number where the result is none."""

    @property
    def passes(self) -> bool:
        """Whether the result is the stored one."""
        return self.difference <= TOLERANCE


def check_parts(device: torch.device) -> list[Check]:
    """Run every part once on a device and compare it with what is stored."""
    return [
        Check(part=part, difference=_difference(numbers, STORED[part]))
        for part, numbers in measured(device).items()
    ]


def measured(device: torch.device) -> dict[str, tuple[float, ...]]:
    """Return the numbers that `STORED` holds, as this machine computes them."""
    import torch

    from anima_pipe.encoders import load_text_encoder, load_vae
    from anima_pipe.model import load_transformer

    with torch.inference_mode():
        image = _wave(1, 3, 32, 48).to(device)
        latents = load_vae(DEMO_VAE, device=device).encode(image)
        encoder = load_text_encoder(DEMO_QWEN, DEMO_T5_TOKENIZER, device=device)
        text = encoder.encode([_CAPTION])[0]
        transformer = load_transformer(DEMO_TRANSFORMER, device=device)
        hidden, ids = text.qwen_hidden[None].to(device), text.t5_ids[None].to(device)
        context = transformer.preprocess_text_embeds(hidden, ids)
        sigma = torch.full((1,), 0.5, device=device)
        velocity = transformer(latents, sigma, context)
    return {
        "VAE": _summary(latents),
        "text encoder": _summary(text.qwen_hidden),
        "transformer": _summary(velocity),
    }


def _wave(*shape: int) -> torch.Tensor:
    """Numbers in [-1, 1] that need no generator: generators differ between devices."""
    import torch

    return torch.arange(math.prod(shape), dtype=torch.float64).mul(0.7).sin().float().view(shape)


def _summary(result: torch.Tensor) -> tuple[float, ...]:
    numbers = result.double().cpu().flatten()
    return (*numbers[:_KEPT].tolist(), numbers.square().mean().sqrt().item())


def _difference(numbers: tuple[float, ...], stored: tuple[float, ...]) -> float:
    differences = [abs(a - b) for a, b in zip(numbers, stored, strict=True)]
    # max() would lose a number that is none.
    if not all(map(math.isfinite, differences)):
        return math.nan
    return max(differences) / max(map(abs, stored))
