"""Runs the commands as a user would, on a few of the demo's pictures and its tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from click.testing import CliRunner
from safetensors.torch import load_file

from anima_pipe import demo
from anima_pipe.cli.main import main
from anima_pipe.runtime import LOGGER

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sys.executable).parent

MODEL = {
    "pretrained_model_name_or_path": demo.DEMO_TRANSFORMER,
    "vae": demo.DEMO_VAE,
    "qwen3": demo.DEMO_QWEN,
    "t5_tokenizer_dir": demo.DEMO_T5_TOKENIZER,
}
"""Options that name the tiny model's files."""

LAUNCH_TWO = (
    *(SCRIPTS / "accelerate", "launch", "--multi_gpu", "--num_processes", "2"),
    # Any free port: other runs may be going on.
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0", ROOT / "anima_train_network.py"),
)
"""What starts a training by two processes; without GPUs they join on the processor."""

TAKES = {
    "fetch-tokenizer": ("t5_tokenizer_dir",),
    "cache-latents": ("vae",),
    "encode-text": ("qwen3", "t5_tokenizer_dir"),
    "train": tuple(MODEL),
    "export-comfy": (),
    "all": tuple(MODEL),
}
"""Which of them a command takes."""

BUCKETS = {
    "resolution": 128,
    "batch_size": 2,
    "enable_bucket": True,
    "min_bucket_reso": 64,
    "max_bucket_reso": 256,
    "bucket_reso_steps": 32,
}
"""Small ones: a picture has 64 tokens."""

TRAINING = {
    "max_train_steps": 2,
    "learning_rate": 2e-3,
    "seed": 1,
    "output_name": "fox",
    "log_with": "none",
}


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a command came to."""

    code: int
    said: str
    """Standard error: messages, warnings, errors."""
    printed: str
    """Standard output."""
    summary: dict[str, Any] | None
    """What --summary_json was given; None if there is no such file."""

    def ok(self) -> Ended:
        """Return itself, having made sure that the command succeeded."""
        assert self.code == 0, self.said
        return self


def options(**values: object) -> list[str]:
    """Write options out as one types them; None leaves one out."""
    arguments: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments += [f"--{name}", str(value)]
    return arguments


def anima_pipe(command: str, summary: Path | None = None, **values: object) -> Ended:
    """Run a command in this process, on the processor, with the tiny model's files.

    Args:
        command: The command's name.
        summary: A file for --summary_json.
        values: Its options; None leaves one of the model's files out.
    """
    given: dict[str, object] = {name: MODEL[name] for name in TAKES[command]}
    if command in ("cache-latents", "encode-text", "train"):
        given["device"] = "cpu"
    if command in ("cache-latents", "train"):
        # A worker process costs more than decoding a handful of pictures.
        given["max_data_loader_n_workers"] = 0
    if command == "train":
        given |= TRAINING
    given |= {"summary_json": summary} | values
    # accelerate keeps one state per process, and every command expects to be the first.
    AcceleratorState._reset_state(reset_partial_state=True)
    result = CliRunner().invoke(main, [command, *options(**given)])
    LOGGER.handlers.clear()
    if result.exc_info and not isinstance(result.exception, SystemExit | None):
        traceback.print_exception(*result.exc_info)
        raise AssertionError(f"{command} ended with a traceback") from result.exception
    return Ended(
        code=result.exit_code,
        said=result.stderr,
        printed=result.stdout,
        summary=_read(summary),
    )


def run_apart(*program: str | Path, summary: Path | None = None, **environment: str) -> Ended:
    """Run a program in a process of its own, from the repository's root."""
    ended = subprocess.run(
        program,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    return Ended(
        code=ended.returncode, said=ended.stderr, printed=ended.stdout, summary=_read(summary)
    )


def _read(summary: Path | None) -> dict[str, Any] | None:
    return json.loads(summary.read_text()) if summary and summary.exists() else None


def write_dataset(path: Path, folder: Path, **keys: object) -> Path:
    """Write a dataset.toml of one folder, with small buckets; `keys` are its subset's."""
    dataset = [f"{name} = {json.dumps(value)}" for name, value in BUCKETS.items()]
    subset = [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
    lines = [
        "[[datasets]]",
        *dataset,
        "[[datasets.subsets]]",
        f"image_dir = {json.dumps(str(folder))}",
    ]
    path.write_text("\n".join([*lines, *subset, ""]))
    return path


def demo_pictures(folder: Path, every: int = 6) -> Path:
    """Copy every n-th of the demo's pictures, with its caption, into a new folder."""
    folder.mkdir(parents=True)
    captions = sorted(demo.DEMO_PICTURES.glob("*.txt"))[::every]
    for path in demo.DEMO_PICTURES.iterdir():
        if path.with_suffix(".txt") in captions:
            shutil.copy(path, folder)
    return folder


def tensors_of(ended: Ended) -> dict[str, torch.Tensor]:
    """Return the tensors of the file that a command says it wrote."""
    assert ended.ok().summary is not None
    return load_file(ended.summary["output"])


def files_in(folder: Path) -> set[str]:
    """Return every file under a folder, hidden and temporary ones too, by relative path."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_one_error(ended: Ended, *words: str) -> None:
    """Check the form that every error has: what is wrong, then what to do."""
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said + ended.printed
    errors = re.findall(r"^error: .*", ended.said, flags=re.MULTILINE)
    assert len(errors) == 1, ended.said
    assert len(re.findall(r"^ +Fix: \S", ended.said, flags=re.MULTILINE)) >= 1, ended.said
    assert [word for word in words if str(word) not in ended.said] == [], ended.said


def shards_in(folder: Path) -> list[str]:
    """Return shards under a folder, and temporary files."""
    return [name for name in files_in(folder) if name.endswith((".tar", ".tmp"))]
