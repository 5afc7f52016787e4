"""TensorBoard started beside a run, as a program of its own that outlives it."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anima_pipe.runtime import say, warn

PORTS_TRIED: Final = 21
"""The one asked for, and the next ones where it is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardConfig:
    """What TensorBoard shows, and where it answers."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 6006


def start_board(config: BoardConfig) -> None:
    """Start TensorBoard, and say where it answers and how to end it; a run goes on without it."""
    for port in range(config.port, config.port + PORTS_TRIED):
        if _is_free(config.host, port):
            break
    else:
        last = config.port + PORTS_TRIED - 1
        warn(
            f"TensorBoard is not started: ports {config.port} to {last} of {config.host} are taken"
        )
        return
    # In a session of its own, so that Ctrl-C ends the run and not what shows it.
    process = subprocess.Popen(  # noqa: S603 - this Python, and paths that the user gave
        [
            *(sys.executable, "-m", "tensorboard.main", "--logdir", str(config.folder)),
            *("--host", config.host, "--port", str(port)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    say(f"tensorboard http://{config.host}:{port} stays after the run; end it: kill {process.pid}")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
