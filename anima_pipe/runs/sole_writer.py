"""One run at a time writes files of a name into an output folder.

Two would replace each other's adapters and states. A run that is killed holds nothing back on its
own machine. On another machine, where nobody can see whether it lives, it holds its name for ten
minutes after its last heartbeat.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anima_pipe.errors import OutputError
from anima_pipe.leases import STALE_SECONDS, Lease, own_host

if TYPE_CHECKING:
    from accelerate import Accelerator

    from anima_pipe.hooks.saving import SaveConfig


@contextmanager
def sole_writer(save: SaveConfig, accelerator: Accelerator) -> Generator[None]:
    """Be the one run that saves under a name; of processes launched together, the first is it.

    Raises:
        OutputError: Another run saves there. All processes raise it.
    """
    from anima_pipe.trainer import gathered

    lease = _lease(save.folder, save.name) if accelerator.is_main_process else None
    try:
        found = gathered(accelerator, lease.others() if lease else [])
        _refuse([who for each in found for who in each], save.folder / save.name)
        yield
    finally:
        if lease:
            lease.release()


@contextmanager
def sole_user(folder: Path) -> Generator[None]:
    """Be the one that runs all stages in an output folder.

    Args:
        folder: Made if need be, in a folder that is there.

    Raises:
        OutputError: Another process does so.
    """
    lease = _lease(folder, "")
    try:
        _refuse(lease.others(), folder)
        yield
    finally:
        lease.release()


def _lease(folder: Path, name: str) -> Lease:
    # Of one length whatever the name's, so that there is room for that of the machine.
    digest = hashlib.blake2b(os.fsencode(name), digest_size=4).hexdigest()
    return Lease(folder, f".run-{digest}")


def _refuse(others: list[str], written: Path) -> None:
    if not others:
        return
    remedy = "wait until it ends, or give another output_dir or output_name"
    if any(not who.endswith(f" on {own_host()}") for who in others):
        minutes = STALE_SECONDS // 60
        remedy += f"; a lost machine counts as gone {minutes} minutes after its last heartbeat"
    raise OutputError(f"another run writes {written}: {' and '.join(others)}", remedy)
