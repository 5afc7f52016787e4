"""The two hashes that Kohya's files carry, by which tools recognise an adapter without reading it.

sshs_model_hash   SHA-256 of everything behind the header: of the tensors alone
sshs_legacy_hash  first 8 digits of the SHA-256 of 64 KiB at the offset of 1 MiB, in the file with
                  Kohya's own metadata (ss_*) alone; of nothing where the file is shorter
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from safetensors.torch import save  # noqa: TID251 - hashed, not written
from torch import Tensor

LEGACY_OFFSET: Final = 0x100000
LEGACY_BYTES: Final = 0x10000


def kohya_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return both hashes by their names in the metadata.

    Args:
        tensors: As they will be in the file.
        metadata: Of the file; what does not begin with ss_ changes nothing.
    """
    own = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    content = memoryview(save(dict(tensors), own))
    header = int.from_bytes(content[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(content[8 + header :]).hexdigest(),
        "sshs_legacy_hash": legacy_hash(content[LEGACY_OFFSET : LEGACY_OFFSET + LEGACY_BYTES]),
    }


def legacy_hash(piece: bytes | memoryview) -> str:
    """Return the short hash of the piece of a file that AUTOMATIC1111's first versions looked at.

    Args:
        piece: Its 64 KiB at the offset of 1 MiB.
    """
    return hashlib.sha256(piece).hexdigest()[:8]
