"""What a step asks of the device, counted on a processor.

On a GPU each operation is a kernel, or nearly so, and costs the host ten microseconds whatever its
size: with ten thousand of them the host, and not the card, decides how long a step is. Views and
allocations launch nothing and are not counted.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anima_pipe.adapters import Adapter, create_adapter
from anima_pipe.model import (
    AnimaTransformer,
    LlmAdapterConfig,
    TextConditionedTransformer,
    TransformerConfig,
)

LIBRARY = Path(__file__).parent.parent / "anima_pipe"

NO_LAUNCH = {
    *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"),
    # Views that do not say so, and a question of the host's.
    *("_unsafe_view", "_reshape_alias", "detach", "lift_fresh", "promote_types"),
}
"""Operations that give a device nothing to do."""


class Launches(TorchDispatchMode):
    """Counts operations while it is entered, those of the backward pass too.

    Args:
        placed: Whether to note the line of the library that asked; it takes time.
    """

    def __init__(self, *, placed: bool = False) -> None:
        super().__init__()
        self.by_place: Counter[str] = Counter()
        """Counts by operation and, where it was asked for, line."""
        self._placed = placed

    @property
    def count(self) -> int:
        """All of them."""
        return self.by_place.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _launches(func):
            place = f" {_asking_line()}" if self._placed else ""
            self.by_place[f"{func.overloadpacket.__name__}{place}"] += 1
        return func(*args, **(kwargs or {}))


def _launches(operation: Any) -> bool:
    schema = operation._schema
    if operation.overloadpacket.__name__ in NO_LAUNCH:
        return False
    aliases = [returned.alias_info for returned in schema.returns]
    is_view = bool(aliases) and all(alias and not alias.is_write for alias in aliases)
    return not is_view


def _asking_line() -> str:
    """Return the innermost line of the library on the stack; torch's own gradients have none."""
    for frame in reversed(traceback.extract_stack(limit=40)):
        path = Path(frame.filename)
        if path.is_relative_to(LIBRARY):
            return f"{path.relative_to(LIBRARY)}:{frame.lineno}"
    return "autograd"


def released_structure() -> AnimaTransformer:
    """Return the transformer with as many layers as the released one, tiny ones, bf16, frozen."""
    torch.manual_seed(0)
    text = LlmAdapterConfig(
        source_width=32, width=32, output_width=32, head_width=16, mlp_width=32, vocabulary=64
    )
    config = TransformerConfig(
        width=64, head_width=16, context_width=32, adaln_width=8, mlp_width=64, llm_adapter=text
    )
    return AnimaTransformer(config).requires_grad_(requires_grad=False).bfloat16()


@dataclass(frozen=True, slots=True)
class Pass:
    """A training pass over one picture, again and again the same."""

    adapter: Adapter
    run: Callable[[], Tensor]
    """The forward pass; returns the loss."""


def training_pass(kind: str = "lora", *, checkpointed: bool = False, **arguments: object) -> Pass:
    """Put an adapter on the released structure, and return a pass of its training."""
    model = released_structure()
    model.checkpoint_blocks(checkpointed)
    adapter = create_adapter(kind, model, **{"network_dim": 4, "network_alpha": 2.0, **arguments})
    module = TextConditionedTransformer(model).train()
    adapter.follow_passes(module)
    generator = torch.Generator().manual_seed(0)
    seen = torch.ones(1, 6, dtype=torch.bool)
    inputs = (
        torch.randn(1, 16, 8, 12, generator=generator).bfloat16(),
        torch.tensor([0.5]),
        torch.randn(1, 6, 32, generator=generator).bfloat16(),
        torch.ones(1, 6, dtype=torch.long),
    )
    return Pass(adapter, lambda: module(*inputs, seen, seen).float().square().mean())
