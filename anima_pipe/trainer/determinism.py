"""Kernels that give the same bits every time, for runs on a GPU."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import torch

WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"
"""What cuBLAS reads, before its first product, of how much memory it may share among streams."""

WORKSPACES: Final = (":4096:8", ":16:8")
"""Those that make it deterministic, the faster one first."""


@contextmanager
def deterministic_kernels(*, wanted: bool) -> Generator[None]:
    """Take no kernel that adds up in an order of the moment, and put all back as it was.

    A backward pass of attention does so by default, and cuDNN's can do no other. An operation that
    has no kernel of the kind is an error of torch's, which names it.

    Args:
        wanted: False: everything stays as it is.
    """
    if not wanted:
        yield
        return
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    convolutions = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    cudnn_attends = torch.backends.cuda.cudnn_sdp_enabled()
    workspace = os.environ.get(WORKSPACE)
    if workspace not in WORKSPACES:
        os.environ[WORKSPACE] = WORKSPACES[0]
    # As warnings alone, attention would go on as it likes.
    torch.use_deterministic_algorithms(mode=True, warn_only=False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = convolutions
        torch.backends.cuda.enable_cudnn_sdp(cudnn_attends)
        if workspace is None:
            del os.environ[WORKSPACE]
        else:
            os.environ[WORKSPACE] = workspace
