"""Leases on caches: nothing is removed that an open run may need.

They lie in the cache folder's `leases`, one for each process that has an encoder's folder open.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from anima_pipe import leases

LEASES: Final = "leases"


def lease_of(folder: Path) -> leases.Lease:
    """Hold an encoder's folder; a cache that cannot be written is read without a lease.

    Args:
        folder: Of the encoder, in the cache folder.
    """
    return leases.Lease(folder.parent / LEASES, folder.name)


def holders(folder: Path) -> list[str]:
    """Return who has an encoder's folder open.

    Args:
        folder: Of the encoder, in the cache folder.
    """
    return leases.holders(folder.parent / LEASES, folder.name)
