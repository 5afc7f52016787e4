"""Making one adapter of several, and a smaller one of one; no model is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.difference import DifferenceDelta
from anima_pipe.adapters.loha import LohaDelta, as_lora
from anima_pipe.adapters.lokr import LokrDelta
from anima_pipe.adapters.lora import LoraConfig, LoraDelta
from anima_pipe.adapters.low_rank import leading_factors, svd, svd_of_product, truncated
from anima_pipe.adapters.norm import NormDelta
from anima_pipe.adapters.registry import kind_in_words, kind_name
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.weights.writing import not_finite

Part = tuple[Delta, float]
"""A delta and its strength."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large the LoRA of a layer may be; at least one of the two."""

    rank: int | None = None
    """At most."""
    energy: float | None = None
    """The share of the change's squared norm to keep, in (0, 1]; the rank follows, per layer."""

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise ConfigError("neither a rank nor an energy is given", "give --rank or --energy")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank is {self.rank}", "use 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy is {self.energy}", "use a share up to 1, such as 0.99")

    def rank_of(self, values: Tensor) -> int:
        """Return the rank to keep of falling singular values, Float[k]; 1 at least."""
        kept = len(values) if self.rank is None else min(self.rank, len(values))
        if self.energy is not None:
            sums = values.double().square().cumsum(0)
            # Rounding must not ask for a direction more than holds all there is.
            enough = (sums >= self.energy * sums[-1] * (1 - 1e-9)).nonzero()[0].item()
            kept = min(kept, int(enough) + 1)
        return max(kept, 1)


@torch.no_grad()
def merge_adapters(
    adapters: Sequence[tuple[Mapping[str, Delta], float]],
    size: Size | None = None,
    *,
    whole: bool = False,
) -> dict[str, Delta]:
    """Return one adapter that changes a model as several do together.

    Args:
        adapters: The deltas by module path, and the strength of them all.
        size: None: the ranks add up and nothing is lost; else the best LoRA of that size.
        whole: Where neither is possible without a loss, give the whole difference, which is exact
            and as large as the layer.

    Raises:
        ConfigError: A kind cannot be merged, or not without a size.
    """
    parts: dict[str, list[Part]] = {}
    for deltas, strength in adapters:
        for path, delta in deltas.items():
            parts.setdefault(path, []).append((delta, strength))
    return {path: _merged(path, of_module, size, whole) for path, of_module in parts.items()}


@torch.no_grad()
def resize_adapter(deltas: Mapping[str, Delta], size: Size) -> dict[str, Delta]:
    """Return the best LoRA of a size for each linear layer; norms stay as they are.

    Raises:
        ConfigError: A kind cannot be resized.
    """
    alone: dict[str, list[Part]] = {path: [(delta, 1.0)] for path, delta in deltas.items()}
    return {path: _merged(path, parts, size, whole=False) for path, parts in alone.items()}


def lora_of_matrix(change: Tensor, size: Size, generator: torch.Generator) -> LoraDelta:
    """Return the best LoRA of a size for a change, Float32[out, in]."""
    if size.energy is None and size.rank is not None:
        return _lora(*leading_factors(change, size.rank, generator))
    left, values, right = svd(change)
    return _lora(*truncated(left, values, right, size.rank_of(values)))


def _merged(path: str, parts: Sequence[Part], size: Size | None, whole: bool) -> Delta:
    """Return one delta in place of all those of a module."""
    for delta, _strength in parts:
        _refuse_not_finite(path, delta)
    for delta, _strength in parts:
        if delta.has_dora:
            raise ConfigError(
                f"{path} is of kind {kind_in_words(delta)}, whose change depends on the base",
                "bake it into the base: export-comfy --merge",
            )
    _refuse_several_shapes(path, parts)
    bias = _summed(parts, "bias")
    of_weight = [part for part in parts if "weight" in part[0].shapes]
    if not of_weight:
        return DifferenceDelta(None, bias)
    try:
        merged = _merged_weights(path, of_weight, size, whole)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.problem}", error.remedy) from error
    merged.bias = None if bias is None else nn.Parameter(bias)
    return merged


def _merged_weights(path: str, parts: Sequence[Part], size: Size | None, whole: bool) -> Delta:
    """Return one delta in place of all those of a module's weight."""
    if size is None and len(parts) == 1 and isinstance(parts[0][0], LokrDelta):
        return parts[0][0].scaled(parts[0][1])
    if all(isinstance(delta, NormDelta) for delta, _strength in parts):
        return NormDelta(_weight_sum(parts), None)
    kinds = {type(delta) for delta, _strength in parts}
    # A norm has no rank that could be lowered.
    if DifferenceDelta in kinds and (size is None or not all(map(_has_rank, parts))):
        return DifferenceDelta(_weight_sum(parts), None)
    factors = [_factors(delta, strength) for delta, strength in parts]
    found = [pair for pair in factors if pair is not None]
    if len(found) == len(parts):
        up = torch.cat([up for up, _down in found], dim=1)
        down = torch.cat([down for _up, down in found])
        if size is None:
            return _lora(up, down)
        left, values, right = svd_of_product(up, down)
        return _lora(*truncated(left, values, right, size.rank_of(values)))
    if whole:
        return DifferenceDelta(_weight_sum(parts), None)
    if size is None:
        names = sorted({kind_name(delta) for delta, _strength in parts})
        raise ConfigError(
            f"{path} is of kind {', '.join(names)}, which has no exact sum of that kind",
            "give --rank, for the best LoRA of that rank, or --whole, for the exact difference, "
            "as large as the layer",
        )
    return lora_of_matrix(_weight_sum(parts), size, torch.Generator().manual_seed(0))


def _refuse_not_finite(path: str, delta: Delta) -> None:
    """Check that a delta can be computed with: there are no singular values of NaN."""
    if spoilt := not_finite(delta.file_tensors()):
        raise CheckpointError(
            f"not every number is finite in {path}.{spoilt[0]}", "use another save of this adapter"
        )


def _refuse_several_shapes(path: str, parts: Sequence[Part]) -> None:
    """Check that all deltas of a module are of one shape."""
    for name in ("weight", "bias"):
        shapes = {d.shapes[name]: None for d, _strength in parts if name in d.shapes}
        if len(shapes) > 1:
            raise ConfigError(
                f"{path}.{name} is of shape {' in one adapter and '.join(map(str, shapes))} in "
                "another",
                "merge adapters of one model",
            )


def _has_rank(part: Part) -> bool:
    """Tell whether the change of a weight is that of a matrix."""
    return len(part[0].shapes["weight"]) == 2


def _factors(delta: Delta, strength: float) -> tuple[Tensor, Tensor] | None:
    """Return up and down with everything folded in, or None where that takes a full matrix."""
    if isinstance(delta, LohaDelta):
        down, up = as_lora(list(delta.factors))
        return up * (delta.config.scale * strength), down
    plain = delta.plain_lora()
    return None if plain is None else (plain[1] * strength, plain[0])


def _lora(up: Tensor, down: Tensor) -> LoraDelta:
    """Return the LoRA whose change is up @ down."""
    return LoraDelta(down.contiguous(), up.contiguous(), LoraConfig(rank=down.shape[0]))


def _weight_sum(parts: Sequence[Part]) -> Tensor:
    """Return the sum of the changes of a weight, which all parts change."""
    total = _summed(parts, "weight")
    assert total is not None
    return total


def _summed(parts: Sequence[Part], name: str) -> Tensor | None:
    """Return the sum of the changes of a parameter, None where there are none."""
    # What depends on the base was refused, so that it may be anything.
    changes = [
        delta.parameter_change(name, torch.empty(0)).detach() * strength
        for delta, strength in parts
        if name in delta.shapes
    ]
    return sum(changes[1:], changes[0]) if changes else None
