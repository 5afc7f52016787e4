"""What loading costs in memory, measured by the kernel in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anima_pipe.model import AnimaTransformer, LlmAdapterConfig, TransformerConfig

CONFIG = TransformerConfig(
    width=512,
    blocks=25,
    head_width=64,
    context_width=256,
    adaln_width=64,
    mlp_width=2048,
    llm_adapter=LlmAdapterConfig(
        width=256, output_width=256, source_width=256, blocks=1, mlp_width=1024, vocabulary=4096
    ),
)

# VmHWM is the peak of everything resident: the process's own memory and the pages of mapped files.
# What the kernel could take back at any time counts here too, which makes this the strict measure.
MEASURE = """
import sys
import torch
from anima_pipe.model import load_transformer, read_transformer_config

def kilobytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field + ":"))

read_transformer_config(sys.argv[1])
before = kilobytes("VmRSS")
model = load_transformer(sys.argv[1], dtype=torch.bfloat16)
print(before, kilobytes("VmHWM"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_loading_takes_little_more_memory_than_the_model(
    tmp_path: Path, stored: torch.dtype
) -> None:
    file = tmp_path / "anima.safetensors"
    with torch.device("meta"):
        shapes = AnimaTransformer(CONFIG).state_dict()
    save_file({name: torch.ones(w.shape, dtype=stored) for name, w in shapes.items()}, file)
    model_bytes = 2 * sum(weight.numel() for weight in shapes.values())
    assert model_bytes > 200_000_000

    output = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file)], capture_output=True, text=True, check=True
    ).stdout
    before, peak = (1024 * int(number) for number in output.split())

    assert 0.95 * model_bytes < peak - before < 1.15 * model_bytes
