"""What linear layers have made for a pass, and what they give where DoRA rescales the change.

DoRA's rule is in `dora`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anima_pipe.adapters.delta import Adapted, effective_weights, end_after_backward
from anima_pipe.adapters.dora import dora_gain, is_by_row, weight_norm
from anima_pipe.adapters.frozen import frozen_linear
from anima_pipe.adapters.together import cast_together, quotients_less_one

if TYPE_CHECKING:
    from anima_pipe.adapters.linear import LinearDelta


class RowNorms:
    """The norms of a frozen layer's rows: a sweep over the whole weight, made once."""

    def __init__(self) -> None:
        self._norms: Tensor | None = None
        self._made_of: tuple[object, ...] = ()

    def of(self, base: nn.Module) -> Tensor:
        """Return the norms, Float32[out, 1]; see `dora.weight_norm`.

        Args:
            base: The layer; what trains in it, or is on it, has its norms made anew each time.
        """
        if frozen_linear(base) is None:
            return weight_norm(effective_weights(base)["weight"], by_row=True)
        weight = base.get_parameter("weight")
        # Merging an adapter into the weight, or moving it, makes them anew.
        made_of = weight._version, weight.device, weight.dtype  # noqa: SLF001 - it has no public name
        if self._norms is None or made_of != self._made_of:
            # Drawing may come first: its tensors could not be trained with.
            with torch.inference_mode(mode=False), torch.no_grad():
                self._norms = weight_norm(effective_weights(base)["weight"], by_row=True)
            self._made_of = made_of
        return self._norms


def copies_together(deltas: Sequence[LinearDelta], dtype: torch.dtype) -> None:
    """Cast the matrices of all layers for a pass.

    Args:
        deltas: What is on each.
        dtype: Of the pass.
    """
    wide = [m for d in deltas for m in d.matrices().values() if m.dtype != dtype]
    if len({matrix.dtype for matrix in wide}) != 1:
        return
    copies = cast_together(wide, dtype)
    cast = dict(zip(wide, copies, strict=True))
    for delta in deltas:
        delta.copies = tuple(cast.get(m, m) for m in delta.matrices().values())
    end_after_backward(copies, deltas)


def gains_together(
    adapted: Sequence[Adapted], deltas: Sequence[LinearDelta], dtype: torch.dtype
) -> None:
    """Make the gains of all layers for a pass, of those by row whose base does not change.

    Args:
        adapted: The layers.
        deltas: What is on each.
        dtype: Of the pass.
    """
    ready = [
        (delta, scale, delta.row_norms.of(wrapper.base))
        for wrapper, delta in zip(adapted, deltas, strict=True)
        if (scale := delta.dora_scale) is not None
        and is_by_row(scale, delta.weight_shape)
        and frozen_linear(wrapper.base) is not None
    ]
    copies = quotients_less_one([s for _, s, _ in ready], [n for _, _, n in ready], dtype)
    for (delta, _, _), copy in zip(ready, copies, strict=True):
        delta.gain_copy = copy
    end_after_backward(copies, [delta for delta, _, _ in ready])


def with_rescaled_weight(
    delta: LinearDelta, scale: Tensor, base: nn.Module, x: Tensor, strength: float | Tensor
) -> Tensor:
    """Return a layer's output with the change of its weight under DoRA, at a strength.

    Args:
        delta: The change.
        scale: DoRA's, Float32[out, 1] or Float32[1, in].
        base: The layer underneath, perhaps adapted itself.
        x: Its input, Float[..., in].
        strength: Multiplies the change.

    Returns:
        Float[..., out] in x's dtype; the base's to the bit where the gain is one.
    """
    if not is_by_row(scale, delta.weight_shape):
        output = base(x)
        return output + strength * _change_by_column(delta, scale, base, x)
    # A strength that was drawn is on the device, and the host does not ask for it.
    is_whole = not isinstance(strength, Tensor) and strength == 1
    frozen = frozen_linear(base) if is_whole else None
    changed = None if frozen is None else delta.changed(frozen, x, 1.0)
    if frozen is not None and changed is not None:
        return _Gained.apply(changed, _gain_less_one(delta, scale, base, x.dtype), frozen.bias)
    output = base(x)
    plain = _without_bias(base, output)
    less_one = _gain_less_one(delta, scale, base, x.dtype)
    return output + strength * (less_one * plain + (1 + less_one) * delta.added(x, 1.0))


class _Gained(torch.autograd.Function):
    """changed + less_one * (changed - bias): all but the bias, times one more than `less_one`."""

    @staticmethod
    def forward(ctx: Any, changed: Tensor, less_one: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(changed, less_one, bias)
        return torch.addcmul(changed, changed if bias is None else changed - bias, less_one)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        changed, less_one, bias = ctx.saved_tensors
        (gradient,) = grad_outputs
        plain = changed if bias is None else changed - bias
        of_less_one = (gradient * plain).flatten(0, -2).sum(0)
        return torch.addcmul(gradient, gradient, less_one), of_less_one, None


def _gain_less_one(
    delta: LinearDelta, scale: Tensor, base: nn.Module, dtype: torch.dtype
) -> Tensor:
    """Return DoRA's gain of each row less one, Float[out]; near one half precision tells little."""
    if delta.gain_copy is not None and delta.gain_copy.dtype == dtype:
        return delta.gain_copy.squeeze(1)
    return (scale / delta.row_norms.of(base) - 1).squeeze(1).to(dtype)


def _change_by_column(delta: LinearDelta, scale: Tensor, base: nn.Module, x: Tensor) -> Tensor:
    """Return the change of the output where each column has its gain."""
    weight = effective_weights(base)["weight"]
    gain = dora_gain(weight, delta.product(), scale).squeeze(0)
    more = base(x * (gain - 1).to(x.dtype))
    return _without_bias(base, more) + delta.added(x * gain.to(x.dtype), 1.0)


def _without_bias(base: nn.Module, output: Tensor) -> Tensor:
    """Return a layer's output less its bias."""
    bias = effective_weights(base).get("bias")
    return output if bias is None else output - bias.to(output.dtype)
