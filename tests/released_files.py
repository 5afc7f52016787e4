"""Small stand-ins for Anima's released files, published on the hubs of fake_hubs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from fake_hubs import Hubs, kept_to_loopback, lead_clients_to, running_hubs
from safetensors.torch import save_file

from anima_pipe import demo
from anima_pipe.cli.main import main
from anima_pipe.hub.models import MODEL_FILES
from anima_pipe.runtime import LOGGER

REPO = "circlestone-labs/Anima"
NAMES = {file.option: Path(file.path).name for file in MODEL_FILES}
PLACES = {file.option: f"{file.folders[0]}/{Path(file.path).name}" for file in MODEL_FILES}
"""Where each file goes in a folder of models, by option."""


def write_release(folder: Path) -> dict[str, Path]:
    """Write or find a small file of each released kind; return them by option."""
    qwen = {
        "model.embed_tokens.weight": torch.zeros(4, 1024, dtype=torch.bfloat16),
        "model.layers.0.self_attn.q_norm.weight": torch.zeros(16, dtype=torch.bfloat16),
        "model.layers.1.mlp.gate_proj.weight": torch.zeros(4, 4, dtype=torch.bfloat16),
    }
    save_file(qwen, folder / "qwen.safetensors")
    return {
        "pretrained_model_name_or_path": demo.DEMO_TRANSFORMER,
        "qwen3": folder / "qwen.safetensors",
        "vae": demo.DEMO_VAE,
    }


@contextmanager
def publishing_hubs(
    folder: Path, release: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hubs]:
    """Run both hubs with the release and the demo's tokenizer, and lead this process to them."""
    with running_hubs(folder) as hubs:
        for hub in (hubs.hugging_face, hubs.modelscope):
            for file in MODEL_FILES:
                hub.files[f"{REPO}/{file.path}"] = release[file.option].read_bytes()
        hubs.hugging_face.add("google/t5-v1_1-base", "", demo.DEMO_T5_TOKENIZER)
        lead_clients_to(hubs, monkeypatch)
        with kept_to_loopback():
            yield hubs


def fetch_models(*arguments: object) -> Result:
    """Run the command in this process."""
    result = CliRunner().invoke(main, ["fetch-models", *map(str, arguments)])
    LOGGER.handlers.clear()
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def start_apart(hubs: Hubs, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own, led to these hubs."""
    return subprocess.Popen(
        [sys.executable, "-m", "anima_pipe.cli", "fetch-models", *map(str, arguments)],
        env={**os.environ, **hubs.environment, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def recorded(hubs: Hubs) -> dict[str, str]:
    """Return what fetch-models noted."""
    return json.loads((Path(hubs.environment["ANIMA_PIPE_HOME"]) / "models.json").read_text())


def leftovers(folder: Path) -> list[str]:
    """Names under a folder that are neither final nor locks."""
    return [p.name for p in folder.rglob("*") if p.name.endswith((".tmp", ".fetching"))]
