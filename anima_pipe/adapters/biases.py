"""Biases of adapted linear layers, which train as differences beside whatever kind is on them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from anima_pipe.adapters.delta import Delta, root_module
from anima_pipe.adapters.inject import walk
from anima_pipe.errors import ConfigError


def train_biases(model: nn.Module, deltas: Mapping[str, Delta]) -> None:
    """Let the biases of adapted linear layers train from where they are.

    Args:
        model: It carries the deltas, or is about to.
        deltas: By module path.

    Raises:
        ConfigError: No adapted layer has a bias.
    """
    modules = dict(walk(model))
    found: list[Delta] = []
    for path, delta in deltas.items():
        bias = dict(root_module(modules[path]).named_parameters(recurse=False)).get("bias")
        if bias is None or delta.group != "linear":
            continue
        found.append(delta)
        if delta.bias is None:
            delta.bias = nn.Parameter(torch.zeros_like(bias, dtype=torch.float32))
    if not found:
        raise ConfigError(
            "train_bias is set, but no adapted layer has a bias",
            "remove train_bias, or adapt layers of the text adapter's mlp",
        )
