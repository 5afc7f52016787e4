"""`anima-pipe train` in a process that has joined others through a backend of one's choice.

    python -m gpu.joined gloo --output_dir ...

accelerate goes on with the processes that it finds joined.
"""

from __future__ import annotations

import sys

import torch.distributed

from anima_pipe.cli.main import main

if __name__ == "__main__":
    torch.distributed.init_process_group(sys.argv[1])
    main(["train", *sys.argv[2:]])
