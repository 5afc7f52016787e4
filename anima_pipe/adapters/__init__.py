"""Adapters: what is trained on top of a frozen model, found by checkpoint names and nothing else.

An adapter kind is one file here and one line in `registry`; nothing in this package knows which
model it is applied to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anima_pipe.adapters.adapter import Adapter, create_adapter
    from anima_pipe.adapters.files import load_adapter, save_adapter

__all__ = ["Adapter", "create_adapter", "load_adapter", "save_adapter"]


def __getattr__(name: str) -> object:
    """Import torch only for those who use it: option tables ask for names of kinds as well."""
    if name in ("Adapter", "create_adapter"):
        from anima_pipe.adapters import adapter

        return getattr(adapter, name)
    if name in ("load_adapter", "save_adapter"):
        from anima_pipe.adapters import files

        return getattr(files, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
