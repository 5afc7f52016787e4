"""The adapter kinds that tests go through, and what they do to a small model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from golden_model import golden_transformer, read_golden

from anima_pipe.adapters import Adapter
from anima_pipe.model import AnimaTransformer

GOLDEN = read_golden("a")

KINDS = {
    "lora": ("lora", {"network_dim": 4, "network_alpha": 3.0}),
    "lokr": ("lokr", {"network_dim": 2, "network_alpha": 3.0, "lokr_factor": 4}),
    "lokr-both": (
        "lokr",
        {"network_dim": 1, "network_alpha": 3.0, "lokr_factor": 4, "lokr_decompose_both": True},
    ),
    "lokr-full": ("lokr", {"network_dim": 100_000, "lokr_factor": 4}),
    "loha": ("loha", {"network_dim": 2, "network_alpha": 3.0}),
    "rs-lora": ("lora", {"network_dim": 4, "network_alpha": 3.0, "rs_lora": True}),
    "dora-rows": ("lora", {"network_dim": 4, "network_alpha": 3.0, "dora": True}),
    "dora-columns": ("lokr", {"network_dim": 2, "dora": True, "wd_on_output": False}),
}
"""Name -> the arguments of `create_adapter`, besides the model."""

STYLED = [
    (case, style)
    for case in KINDS
    for style in ("comfy", "kohya")
    if style == "comfy" or case not in ("lokr-both", "dora-rows", "dora-columns")
]
"""Every case with every style that has words for it."""


def small_model(dtype: torch.dtype = torch.float32) -> AnimaTransformer:
    """Return the golden transformer, frozen."""
    return golden_transformer("a").to(dtype).requires_grad_(requires_grad=False)


def velocity(model: AnimaTransformer) -> torch.Tensor:
    """Run the whole model, text adapter and all, on the golden inputs in the model's dtype."""
    dtype = next(model.parameters()).dtype
    context = model.preprocess_text_embeds(
        GOLDEN["qwen_hidden"].to(dtype), GOLDEN["t5_ids"], GOLDEN["qwen_mask"], GOLDEN["t5_mask"]
    )
    return model(GOLDEN["latents"].to(dtype), GOLDEN["sigma"], context)


def pretend_training(adapter: Adapter, seed: int = 1, size: float = 0.05) -> Adapter:
    """Move every trainable tensor, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return adapter


def assert_same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
