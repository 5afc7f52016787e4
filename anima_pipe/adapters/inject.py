"""A model's modules by their checkpoint names, and the wrappers put in their places."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from anima_pipe.adapters.delta import Adapted, Delta, root_module


def walk(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module with its checkpoint name; a wrapper stands for what it wraps."""
    for name, child in model.named_children():
        place = f"{path}.{name}" if path else name
        yield place, child
        if not isinstance(child, Adapted):
            yield from walk(child, place)


def depths(model: nn.Module) -> dict[str, int]:
    """Return the length of every list of layers, by its path: {"blocks": 28}."""
    return {path: len(m) for path, m in walk(model) if isinstance(m, nn.ModuleList)}


def wrap(model: nn.Module, path: str, delta: Delta) -> Adapted:
    """Put a delta on the module at a path, over whatever is on it already.

    Returns:
        What stands there from now on.
    """
    parent, name = _place(model, path)
    base: nn.Module = getattr(parent, name)
    delta.to(next(root_module(base).parameters()).device)
    adapted = Adapted(base, delta)
    setattr(parent, name, adapted)
    return adapted


def unwrap(model: nn.Module, path: str, delta: Delta) -> nn.Module:
    """Take a delta off the module at a path, from under others if need be.

    Returns:
        The module that it was put on.
    """
    parent, name = _place(model, path)
    module = getattr(parent, name)
    while isinstance(module, Adapted) and module.delta is not delta:
        parent, name, module = module, "base", module.base
    assert isinstance(module, Adapted), f"{path} does not carry this delta"
    setattr(parent, name, module.base)
    return module.base


def _place(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that holds the one at a path, and its name there."""
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name
