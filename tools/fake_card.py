"""A card that is not there: fake tensors on it, and what the host would have waited for.

Torch's fake tensors have a shape, a dtype and a device, but no numbers.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

CARD: Final = torch.device("cuda", 0)
ROOT: Final = Path(__file__).resolve().parent.parent

aten = torch.ops.aten


@dataclass
class Waits:
    """What the host would have waited for, each with the line of the project that asked."""

    reads: Counter[str] = field(default_factory=Counter[str])
    """Numbers of the card that the host read."""
    copies: Counter[str] = field(default_factory=Counter[str])
    """Copies from memory that was not pinned, or back to the host."""

    def __str__(self) -> str:
        lines = [f"read at {place} x {n}" for place, n in self.reads.items()]
        return ", ".join([*lines, *(f"copy at {place} x {n}" for place, n in self.copies.items())])


class Card(TorchDispatchMode):
    """Stands for the card: answers what has no answer without one, and notes what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = Waits()
        self._pinned = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation."""
        del types
        kwargs = kwargs or {}
        if func in (aten.pin_memory.default, aten._pin_memory.default):  # noqa: SLF001
            pinned = aten.clone.default(args[0])
            self._pinned[pinned] = True
            return pinned
        if func is aten._local_scalar_dense.default:  # noqa: SLF001
            if args[0].is_cuda:
                self.waits.reads[_asking_line()] += 1
            return True if args[0].dtype == torch.bool else args[0].dtype.is_floating_point or 1
        if func is aten.randint.low_generator:
            kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
            func = aten.randint.low
        result = func(*args, **kwargs)
        if func.overloadpacket in (aten._to_copy, aten.to):  # noqa: SLF001
            self._note(args[0], result, waits=not _argument(func, "non_blocking", args, kwargs))
        elif func is aten.copy_.default:
            self._note(args[1], args[0], waits=not _argument(func, "non_blocking", args, kwargs))
        return result

    def _note(self, source: torch.Tensor, target: torch.Tensor, *, waits: bool) -> None:
        if source.device.type == target.device.type:
            return
        if waits or target.device.type == "cpu" or source not in self._pinned:
            self.waits.copies[_asking_line()] += 1


def _argument(func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return an argument of an operation, however it was given; None: it was not."""
    places = [argument.name for argument in func._schema.arguments]  # noqa: SLF001
    place = places.index(name) if name in places else len(args)
    return kwargs.get(name, args[place] if place < len(args) else None)


def _asking_line() -> str:
    """Return the innermost line of the project on the stack, such as model/rope.py:43."""
    frame = inspect.currentframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "anima_pipe"):
            return f"{path.relative_to(ROOT / 'anima_pipe')}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch"


@contextmanager
def fake_card() -> Generator[Card]:
    """Let tensors be made without numbers, also on a card."""
    generator = torch.Generator
    # A generator of a card's own cannot be made without the card.
    torch.Generator = lambda device="cpu": generator()  # noqa: ARG005  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Card() as card:
            yield card
    finally:
        torch.Generator = generator


def onto_card(module: nn.Module) -> None:
    """Put a module's tensors on the card, without their numbers; within `fake_card`."""
    for part in module.modules():
        for name, parameter in [*part.named_parameters(recurse=False)]:
            on_card = torch.empty(parameter.shape, dtype=parameter.dtype, device=CARD)
            setattr(part, name, nn.Parameter(on_card, parameter.requires_grad))
        for name, buffer in [*part.named_buffers(recurse=False)]:
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=CARD))
