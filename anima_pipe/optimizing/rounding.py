"""Weights kept in bf16 whose optimizer works in fp32, its steps rounded up or down by chance.

bf16 has eight bits: a step below a 512th of a weight would be lost each time it is rounded to the
nearest number. Rounded to one neighbour or the other with chances as near as they are, it is kept
on average (Gupta et al., arXiv:1502.02551).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anima_pipe import foreach
from anima_pipe.foreach import buffer_for, copied_together, places_in
from anima_pipe.runtime import derive_seed

DROPPED_BITS: Final = 16
"""Of fp32, by which bf16 is shorter."""

PIECE_NUMBERS: Final = 2**26
"""At most so many are there in fp32 at once, where a step may be taken in pieces."""

ROUNDED_AT_ONCE: Final = 2**24
"""Numbers of which there are a few copies more for a while, as they are rounded."""


def round_by_chance(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return numbers of bf16 whose mean, over the draws, is what they were.

    Args:
        values: Float32.
        generator: On their device.

    Returns:
        BFloat16, each one of the two nearest to its value.
    """
    noise = torch.randint(
        2**DROPPED_BITS,
        values.shape,
        dtype=torch.int32,
        device=values.device,
        generator=generator,
    )
    # Added to the bits that are dropped, it carries with the chance that they are worth.
    bits = (values.view(torch.int32) + noise) & -(2**DROPPED_BITS)
    return torch.where(values.isfinite(), bits.view(torch.float32), values).bfloat16()


@contextmanager
def widened(parameters: Iterable[nn.Parameter]) -> Generator[None]:
    """Let weights kept in bf16 be fp32 for a while, and the nearest bf16 afterwards."""
    narrow = _widen(parameters)
    try:
        yield
    finally:
        _narrow(narrow, Tensor.bfloat16)


class StochasticRounding:
    """Keeps weights in bf16 between an optimizer's steps, which it lets see fp32.

    What it draws depends on the seed and the number of the step alone, so that processes and
    resumed runs round alike.

    Args:
        optimizer: Its state has been made for fp32, or will be.
        parameters: Which of its parameters to keep in bf16.
        seed: Of the run.
        piecewise: Whether a step may be taken in pieces, a few tensors at a time, so that never
            all weights and gradients are there in fp32. So it may where a step looks at each
            tensor by itself and leaves the settings of the groups as they are.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Iterable[nn.Parameter],
        seed: int,
        *,
        piecewise: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.seed = seed
        self.steps = 0
        """Taken by the optimizer."""
        self._kept: dict[nn.Parameter, Tensor] = {}
        for parameter in self.parameters:
            parameter.data = parameter.data.bfloat16()
        self._optimizer = optimizer
        self._pieces = _pieces(self._all_parameters(), PIECE_NUMBERS if piecewise else None)
        self._whole: list[list[nn.Parameter]] | None = None
        """The optimizer's groups while it steps through pieces of them."""
        self._is_last = False
        """Whether it steps the last of them."""
        self._generator = torch.Generator(self.parameters[0].device)
        optimizer.register_step_pre_hook(lambda *_: self._before_step())
        optimizer.register_step_post_hook(lambda *_: self._after_step())

    @property
    def widest(self) -> int:
        """How many numbers are there in fp32 at once, for a while in each step."""
        narrow = set(self.parameters)
        return max(
            sum(p.numel() for group in piece for p in group if p in narrow)
            for piece in self._pieces
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, and the state of the optimizer."""
        return {"steps": self.steps, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take both back."""
        self.steps = state_dict["steps"]
        # Optimizers cast their state to the dtype of the weights that they find.
        with widened(self.parameters):
            self._optimizer.load_state_dict(state_dict["optimizer"])

    def _before_step(self) -> None:
        """Widen what the optimizer is about to step; before the last piece, step all others."""
        if self._whole is None:
            self._begin()
            for piece in self._pieces[:-1]:
                self._restrict_to(piece)
                self._optimizer.step()
            self._restrict_to(self._pieces[-1])
            self._is_last = True
        self._kept = _widen(p for group in self._optimizer.param_groups for p in group["params"])

    def _after_step(self) -> None:
        _narrow(self._kept, partial(round_by_chance, generator=self._generator))
        self._kept = {}
        if self._is_last:
            self._end()

    def _begin(self) -> None:
        self._whole = self._all_parameters()
        self._is_last = False
        self._generator.manual_seed(derive_seed(self.seed, "rounding", self.steps + 1))

    def _end(self) -> None:
        assert self._whole is not None
        for group, whole in zip(self._optimizer.param_groups, self._whole, strict=True):
            group["params"] = whole
        self._whole = None
        self.steps += 1

    def _restrict_to(self, piece: Sequence[Sequence[nn.Parameter]]) -> None:
        """Leave the optimizer's groups a piece of them each."""
        for group, own in zip(self._optimizer.param_groups, piece, strict=True):
            group["params"] = [*own]

    def _all_parameters(self) -> list[list[nn.Parameter]]:
        return [[*group["params"]] for group in self._optimizer.param_groups]


def _pieces(
    groups: Sequence[Sequence[nn.Parameter]], largest: int | None
) -> list[list[list[nn.Parameter]]]:
    """Return groups cut into pieces that have no more numbers each, a larger tensor one by itself.

    Args:
        groups: Of an optimizer.
        largest: Numbers in a piece; None: all are one piece.
    """
    pieces: list[list[list[nn.Parameter]]] = []
    room = 0
    for number, group in enumerate(groups):
        for parameter in group:
            if not pieces or (largest is not None and parameter.numel() > room):
                pieces.append([[] for _ in groups])
                room = 0 if largest is None else largest
            pieces[-1][number].append(parameter)
            room -= parameter.numel()
    return pieces


def _widen(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Let weights in bf16 be fp32; return their memory in bf16."""
    kept = {p: p.data for p in parameters if p.dtype == torch.bfloat16}
    wide = copied_together([*kept.values()], torch.float32)
    with_gradient = [p for p in kept if p.grad is not None]
    gradients = copied_together(
        [p.grad for p in with_gradient if p.grad is not None], torch.float32
    )
    for parameter in with_gradient:
        parameter.grad = None
    for parameter, values in zip(kept, wide, strict=True):
        parameter.data = values
    for parameter, gradient in zip(with_gradient, gradients, strict=True):
        parameter.grad = gradient
    return kept


def _narrow(kept: Mapping[nn.Parameter, Tensor], to_bf16: Callable[[Tensor], Tensor]) -> None:
    """Put weights back into their memory in bf16; their gradients have been used.

    Args:
        kept: From `_widen`.
        to_bf16: Rounds Float32[n] to BFloat16[n].
    """
    for piece in _pieces([[*kept]], ROUNDED_AT_ONCE):
        values = [parameter.data for parameter in piece[0]]
        buffer = buffer_for(values, torch.float32)
        foreach.copy_(places_in(buffer, values), values)
        memory = [kept[parameter] for parameter in piece[0]]
        foreach.copy_(memory, places_in(to_bf16(buffer), values))
    for parameter, memory in kept.items():
        parameter.grad = None
        parameter.data = memory
