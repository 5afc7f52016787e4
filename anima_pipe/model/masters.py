"""Weights that are kept in one dtype and computed with in another: masters of mixed precision.

A step of training may change a weight by less than half precision can tell, so that what trains is
kept in fp32. A layer casts its weight where it multiplies by it, and again in the backward pass, so
that of all weights in half precision those of one layer are there at a time; gradients are summed
up in the dtype of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, rms_norm

from anima_pipe.model.norms import EPSILON, RMSNorm


class MasterLinear(nn.Linear):
    """A linear layer that computes in the dtype of its input.

    Args:
        layer: The layer as it was, whose parameters are taken over.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = layer.weight
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Return the layer's output, Float[..., out], of Float[..., in]."""
        return _MasterProduct.apply(input, self.weight, self.bias)


class MasterEmbedding(nn.Embedding):
    """A table of tokens whose rows are cast where they are looked up.

    Args:
        table: The table as it was, whose weight is taken over.
        dtype: Of what is looked up.
    """

    def __init__(self, table: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, device="meta")
        self.weight = table.weight
        self._dtype = dtype

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """Return the rows, Float[..., width], of Int[...]."""
        return super().forward(input).to(self._dtype)


class MasterRMSNorm(RMSNorm):
    """A norm whose weight is cast to the dtype of its input.

    So it stays one kernel that keeps its input as it is; a norm by weights in fp32 would keep a
    copy of it in fp32.

    Args:
        norm: The norm as it was, whose weight is taken over.
    """

    def __init__(self, norm: RMSNorm) -> None:
        nn.Module.__init__(self)
        self.weight = norm.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return Float[..., width] in the dtype of x, computed in fp32."""
        return rms_norm(x, self.weight.shape, self.weight.to(x.dtype), EPSILON)


def use_masters(model: nn.Module, dtype: torch.dtype) -> None:
    """Have the layers of a model compute in a dtype that is not that of their weights.

    Weights that do not train are kept in it, where that loses nothing.

    Args:
        model: Of fp32; which of its parameters train has been told to it.
        dtype: That of the inputs of its layers.
    """
    for weight in model.parameters():
        narrow = weight.detach().to(dtype)
        if not weight.requires_grad and torch.equal(narrow.to(weight.dtype), weight):
            weight.data = narrow
    for path, layer in list(model.named_modules()):
        if all(weight.dtype == dtype for weight in layer.parameters(recurse=False)):
            continue
        parent, _, name = path.rpartition(".")
        if type(layer) is nn.Linear:
            setattr(model.get_submodule(parent), name, MasterLinear(layer))
        elif type(layer) is RMSNorm:
            setattr(model.get_submodule(parent), name, MasterRMSNorm(layer))
        elif type(layer) is nn.Embedding:
            setattr(model.get_submodule(parent), name, MasterEmbedding(layer, dtype))


class _MasterProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        x, weight = ctx.saved_tensors
        (gradient,) = grad_outputs
        of_x, of_weight, of_bias = None, None, None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight.to(x.dtype)
        rows = gradient.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            of_weight = (rows.T @ x.flatten(0, -2)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0, dtype=ctx.bias_dtype)
        return of_x, of_weight, of_bias
