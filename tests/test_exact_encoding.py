"""Latents and texts are the same numbers wherever they are encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from anima_pipe.demo import DEMO_QWEN, DEMO_T5_TOKENIZER, DEMO_VAE
from anima_pipe.encoders import load_text_encoder, load_vae


def precisions() -> tuple[str, bool, bool]:
    """What fp32 may be rounded to: in products, on a GPU, and in its convolutions."""
    cuda, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return torch.get_float32_matmul_precision(), cuda, cudnn


@pytest.fixture
def fast_products() -> Iterator[None]:
    """A machine set to rounding, as a program around this one may have left it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def encoded_picture() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return load_vae(DEMO_VAE).encode(torch.rand(1, 3, 32, 48, generator=generator) * 2 - 1)


def encoded_text() -> torch.Tensor:
    (condition,) = load_text_encoder(DEMO_QWEN, DEMO_T5_TOKENIZER).encode(["fox, teal scarf"])
    return condition.qwen_hidden


@pytest.mark.usefixtures("fast_products")
@pytest.mark.parametrize("encoded", [encoded_picture, encoded_text])
def test_nothing_is_rounded_to_tf32_while_encoding(encoded: Callable[[], torch.Tensor]):
    asked = precisions()
    seen: set[tuple[str, bool, bool]] = set()
    handle = register_module_forward_pre_hook(lambda *_: seen.add(precisions()))
    try:
        found = encoded()
    finally:
        handle.remove()
    assert asked == ("medium", True, True)
    assert seen == {("highest", False, False)}
    assert precisions() == asked
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(found, encoded())
