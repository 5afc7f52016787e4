"""Tensors that the backward pass makes anew instead of keeping them.

Most of a block's memory in training is what its layers keep for the backward pass, and a good part
of that follows from something else that is kept, by arithmetic that costs nothing beside the matrix
products: the activation of an mlp from what is activated, a normed stream from the stream. Such a
tensor is made by `recomputed`; within `forgetting` whatever would keep it, or a view of it, keeps
the recipe. Outside of that, `recomputed` is a plain call: where blocks are checkpointed there is
nothing to gain, and a compiler decides for itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Recipe:
    """How to make a tensor again, and for how many that wait for it.

    Args:
        made: What was made; it is not kept alive.
        make: Makes the same again, to the bit; it must not draw random numbers.
        inputs: What it makes it of. Tensors among them are kept, and of those that can be made
            again themselves the recipe.
    """

    def __init__(
        self, made: Tensor, make: Callable[..., Tensor], inputs: Sequence[object | _Remade]
    ) -> None:
        self._made = weakref.ref(made)
        self._make = make
        self._inputs = inputs
        self._waiting = 0
        self._again: Tensor | None = None

    def is_of(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is the one that was made, or a view of it."""
        made = self._made()
        # Dead, its memory may belong to another tensor by now.
        return made is not None and place_of(made) == place_of(tensor)

    def promise(self) -> None:
        """Count one more who will ask for the tensor."""
        if not self._waiting:
            # Made once for all, it asks once for what it is made of.
            for given in self._inputs:
                if isinstance(given, _Remade):
                    given.recipe.promise()
        self._waiting += 1

    def served(self) -> Tensor:
        """Return the tensor, made once for all who wait for it."""
        if self._again is None:
            inputs = [i.again() if isinstance(i, _Remade) else i for i in self._inputs]
            with torch.no_grad():
                self._again = self._make(*inputs)
        again = self._again
        self._waiting -= 1
        if self._waiting <= 0:
            self._again = None
        return again


_RECIPES: ContextVar[dict[int, Recipe] | None] = ContextVar("recipes", default=None)
"""Those of the block that is running, by where their tensors lie; None: everything is kept."""


class _Remade:
    """Stands for a tensor that is not kept: a view of what a recipe makes."""

    def __init__(self, recipe: Recipe, view: Tensor) -> None:
        self.recipe = recipe
        self._layout = view.size(), view.stride(), view.storage_offset()

    def again(self) -> Tensor:
        """Return the tensor."""
        return self.recipe.served().as_strided(*self._layout)


def _remade(recipes: dict[int, Recipe], given: object) -> _Remade | None:
    """Return what stands for a tensor that can be made again; None: it is no such."""
    if not isinstance(given, Tensor):
        return None
    recipe = recipes.get(place_of(given)[0])
    return _Remade(recipe, given) if recipe and recipe.is_of(given) else None


def place_of(tensor: Tensor) -> tuple[int, torch.dtype]:
    """Return what a tensor shares with its views: where they lie, and what they are made of."""
    return tensor.untyped_storage().data_ptr(), tensor.dtype


def recomputed(make: Callable[..., Tensor], *inputs: object) -> Tensor:
    """Return make(*inputs), to be made again where it would be kept.

    Args:
        make: Cheap, the same to the bit whenever it is called, and contiguous in what it returns.
        inputs: Tensors among them are kept, so they should be ones that something keeps anyway,
            or that `recomputed` made.
    """
    made = make(*inputs)
    recipes = None if torch.compiler.is_compiling() else _RECIPES.get()
    if recipes is not None and made.requires_grad and made.is_contiguous():
        kept = [_remade(recipes, given) or given for given in inputs]
        recipes[place_of(made)[0]] = Recipe(made, make, kept)
    return made


@contextmanager
def forgetting() -> Generator[None]:
    """Let what runs within keep recipes instead of recomputed tensors."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        yield
        return
    recipes: dict[int, Recipe] = {}

    def keep(tensor: Tensor) -> Tensor | _Remade:
        remade = _remade(recipes, tensor)
        if remade is None:
            # Detached: an operation that kept its own output would hang on to itself for ever.
            return tensor.detach()
        remade.recipe.promise()
        return remade

    def give_back(kept: Tensor | _Remade) -> Tensor:
        return kept.again() if isinstance(kept, _Remade) else kept

    before = _RECIPES.set(recipes)
    try:
        with saved_tensors_hooks(keep, give_back):
            yield
    finally:
        _RECIPES.reset(before)
        # What is kept holds on to `keep`, and so would hold on to recipes of operations behind it:
        # a ring that lasts for ever where no backward pass opens it.
        recipes.clear()
