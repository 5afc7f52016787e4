"""Every adapter kind with every option that it has, from its creation to its merge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapter_cases import GOLDEN, small_model, velocity
from golden_model import relative_error
from torch import nn

from anima_pipe.adapters import create_adapter, load_adapter, save_adapter
from anima_pipe.adapters.registry import KINDS
from anima_pipe.adapters.settings import field_types
from anima_pipe.export.verification import verify_export
from anima_pipe.model import AnimaTransformer

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in KINDS},
    "pissa": ("lora", {"pissa": True}),
}
"""What is tried: every kind, and a start that makes another kind of one."""

OTHER_VALUES: dict[str, list[dict[str, Any]]] = {
    "rank": [{"network_dim": 1}, {"network_dim": 12}],
    "alpha": [{"network_alpha": None}, {"network_alpha": 0.5}],
    "rs_lora": [{"rs_lora": True}],
    "dropout": [{"dropout": 0.3}],
    "rank_dropout": [{"rank_dropout": 0.3}],
    "module_dropout": [{"module_dropout": 0.3}],
    "dora": [{"dora": True}],
    "wd_on_output": [{"dora": True, "wd_on_output": False}],
    "pissa": [{"pissa": True, "dropout": 0.2, "rank_dropout": 0.2}],
    "lokr_factor": [{"lokr_factor": -1}, {"lokr_factor": 4}],
    "lokr_full_matrix": [{"lokr_full_matrix": True}],
    "lokr_decompose_both": [{"lokr_decompose_both": True, "network_dim": 1, "lokr_factor": 4}],
    "tlora_min_rank": [{"tlora_min_rank": 3}],
    "tlora_exponent": [{"tlora_exponent": 2.0}],
}
"""By the field of a kind's settings: values other than its default. A new field has none yet."""

CASES = [
    pytest.param(kind, {**start, **arguments}, id=f"{base}-{field}-{number}")
    for base, (kind, start) in BASES.items()
    for field in field_types(KINDS[kind].config)
    for number, arguments in enumerate(OTHER_VALUES[field])
]


class Whole(nn.Module):
    """Stands where the trainer's module stands: text adapter and all, sigmas given."""

    def __init__(self, model: AnimaTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, sigmas: torch.Tensor) -> torch.Tensor:
        assert len(sigmas) == len(GOLDEN["latents"])
        return velocity(self.model)


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_every_kind_trains_saves_loads_and_merges_under_every_option(tmp_path, kind, arguments):
    model = small_model()
    untouched = velocity(model)
    model.train()
    adapter = create_adapter(kind, model, **{"network_dim": 4, **arguments})
    whole = Whole(model)
    adapter.follow_passes(whole, place=0)
    optimizer = torch.optim.Adam(list(adapter.parameters()), lr=2e-2)
    torch.manual_seed(0)

    (whole(GOLDEN["sigma"]) - GOLDEN["target"]).square().mean().backward()
    optimizer.step()
    adapter.limit_norms(1.0)

    model.eval()
    trained = velocity(model)
    path = save_adapter(adapter, tmp_path / "a.safetensors")
    loaded = small_model()
    read = load_adapter(path, loaded)
    assert relative_error(trained, untouched) > 1e-3
    assert verify_export(path, adapter.deltas) < 1e-5
    assert relative_error(velocity(loaded), trained) < 1e-5
    read.merge()
    assert relative_error(velocity(loaded), trained) < 1e-5
