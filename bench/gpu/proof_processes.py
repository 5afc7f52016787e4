"""Two processes on one card train what one does that takes twice the batches for a step.

NCCL, which accelerate takes on cards, wants a card for each process; whether it lets two share this
one is tried and noted. Through gloo they can, and everything else in a run is the same.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from commands import MODEL, TRAINING, options
from safetensors.torch import load_file

from gpu.differences import overall, plain_fp32
from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.small_runs import cached_pictures, train

STEPS = 2
PROCESSES = 2
ADAPTER_WITHIN = 1e-2
"""Of the one process's: gradients summed in another order, and what Adam makes of them."""
PATIENCE_SECONDS = {"gloo": 40, "nccl": 20}
SMALL_PATIENCE_SECONDS = 180
"""A processor may have other work."""


def measure(setting: Setting, results: Results) -> None:
    """Train by one process, then by two."""
    plain_fp32()
    shared = {"max_train_steps": STEPS, "mixed_precision": "no"}
    with results.attempt("two processes through gloo"):
        one = train(setting, "one", setting.device, gradient_accumulation_steps=2, **shared)
        said = train_by_two(setting, "gloo", shared)
        if said is not None:
            raise RuntimeError(said)
        output = load_file(setting.scratch / "two-gloo" / f"{TRAINING['output_name']}.safetensors")
        error = overall(output, one.tensors)
        results.check("two processes through gloo: adapter as of one", error, ADAPTER_WITHIN)
    if setting.on_gpu:
        said = train_by_two(setting, "nccl", shared)
        answer = "lets them" if said is None else f"does not let them: {said}"
        results.note("two processes on one card", f"NCCL {answer}")


def train_by_two(setting: Setting, backend: str, shared: dict[str, object]) -> str | None:
    """Train by two processes on the same device; return why they could not."""
    patience = SMALL_PATIENCE_SECONDS if setting.small else PATIENCE_SECONDS[backend]
    folder = setting.scratch / f"two-{backend}"
    given = {**MODEL, **TRAINING, **cached_pictures(setting), **shared, "output_dir": folder}
    given |= {"device": str(setting.device), "max_data_loader_n_workers": 0}
    processes = [
        start(backend, rank, port, options(**given), folder.with_suffix(f".{rank}"))
        for port in [free_port()]
        for rank in range(PROCESSES)
    ]
    try:
        codes = [process.wait(patience) for process in processes]
    except subprocess.TimeoutExpired:
        return f"no answer in {patience} s"
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if not any(codes):
        return None
    said = [folder.with_suffix(f".{rank}").read_text() for rank in range(PROCESSES)]
    print(*said, sep="\n")
    return telling_line(said[next(rank for rank, code in enumerate(codes) if code)])


def start(
    backend: str, rank: int, port: int, arguments: list[str], said: Path
) -> subprocess.Popen[bytes]:
    """Start one of the two, as a launcher does that gives both the first card."""
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "gpu.joined", backend, *arguments]
    with said.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def telling_line(said: str) -> str:
    """Return the line of a failed process that says most: NCCL's own, else the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    own = [line for line in lines if "Duplicate GPU" in line or "ncclInvalidUsage" in line]
    return (own or lines or ["it said nothing"])[-1]


if __name__ == "__main__":
    run_part(measure)
