"""The card itself: versions, what it multiplies and copies in a second, and its data sheet."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from gpu.peaks import datasheet_tflops, matmul_tflops
from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.timing import seconds_each

PACKAGES = (
    *("torch", "numpy", "triton", "accelerate", "transformers", "tokenizers", "safetensors"),
    *("sentencepiece", "huggingface_hub", "modelscope-hub", "webdataset", "schedulefree", "peft"),
    *("diffusers", "lycoris-lora", "tensorboard", "lion-pytorch", "prodigyopt", "came-pytorch"),
)
MODULES = (
    *("anima_pipe.cli.main", "anima_pipe.trainer", "anima_pipe.fill", "anima_pipe.drawing.painter"),
    *("anima_pipe.hub.models", "stages.train", "stages.export_comfy", "modelscope_hub"),
    *("webdataset", "schedulefree", "diffusers", "lycoris", "peft", "lion_pytorch", "prodigyopt"),
    "came_pytorch",
)
COPIED_BYTES = 2**32


def measure(setting: Setting, results: Results) -> None:
    """Note versions, import everything that the other parts will, and measure the card."""
    versions(setting, results)
    for name in MODULES:
        with results.attempt(f"import {name}"):
            importlib.import_module(name)
    with results.attempt("what the card can do"):
        speeds(setting, results)


def versions(setting: Setting, results: Results) -> None:
    """Note what this ran on."""
    said = {
        "device": device_name(setting),
        "driver": driver(setting),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "Python": platform.python_version(),
        "processors": str(os.cpu_count()),
    }
    for package in PACKAGES:
        try:
            said[package] = version(package)
        except PackageNotFoundError:
            said[package] = "not installed"
    for what, text in said.items():
        results.figure("Versions", of=what, version=text)


def device_name(setting: Setting) -> str:
    """Return the card's name and memory, or the processor's kind."""
    if not setting.on_gpu:
        return platform.processor() or platform.machine()
    of = torch.cuda.get_device_properties(setting.device)
    gib = of.total_memory / 2**30
    return f"{of.name}, {gib:.0f} GiB, {of.multi_processor_count} multiprocessors"


def driver(setting: Setting) -> str | None:
    """Return the driver's version; None where nobody tells."""
    if not setting.on_gpu:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def speeds(setting: Setting, results: Results) -> None:
    """Measure a large product and a large copy."""
    name = torch.cuda.get_device_name(setting.device) if setting.on_gpu else ""
    results.figure(
        "What the card can do",
        of="bf16 product, TFLOP/s",
        measured=matmul_tflops(setting.device, torch.bfloat16, 128 if setting.small else 8192),
        datasheet=datasheet_tflops(name),
    )
    count = 2**16 if setting.small else COPIED_BYTES
    source = torch.randint(256, (count,), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    seconds, _host = seconds_each(lambda: target.copy_(source), setting.device)
    results.figure(
        "What the card can do",
        of="copy within its memory, TB/s read and written",
        measured=2 * count / min(seconds) / 1e12,
        datasheet=None,
    )


if __name__ == "__main__":
    run_part(measure)
