"""The training loop, a step of it, and the processes that share the work.

The only importer of accelerate. It is handed everything it trains with and builds none of it.
"""

from anima_pipe.trainer.determinism import deterministic_kernels
from anima_pipe.trainer.fsdp import asks_for_fsdp, take_fsdp_request
from anima_pipe.trainer.loop import Closing, Hook, Rescuing, Trainer
from anima_pipe.trainer.processes import (
    ProcessConfig,
    accelerate_afresh,
    agree_on_seed,
    first_process_first,
    gathered,
    prepared,
    start_accelerate,
    sum_over_processes,
)
from anima_pipe.trainer.step import NonFiniteError, TrainerConfig, draw_seed
from anima_pipe.trainer.stopping import StopRequest
from anima_pipe.trainer.tally import Tally
from anima_pipe.trainer.trackers import TrackerConfig, Trackers, ending_training

__all__ = [
    "Closing",
    "Hook",
    "NonFiniteError",
    "ProcessConfig",
    "Rescuing",
    "StopRequest",
    "Tally",
    "TrackerConfig",
    "Trackers",
    "Trainer",
    "TrainerConfig",
    "accelerate_afresh",
    "agree_on_seed",
    "asks_for_fsdp",
    "deterministic_kernels",
    "draw_seed",
    "ending_training",
    "first_process_first",
    "gathered",
    "prepared",
    "start_accelerate",
    "sum_over_processes",
    "take_fsdp_request",
]
