"""A JSON object that carries the checksum of its own text, so that a damaged one tells on itself.

The last entry is `"checksum": "<crc32 of the text before its comma, 8 hexadecimal digits>"`. JSON
readers that know nothing of it see one entry more.
"""

from __future__ import annotations

import zlib
from typing import Final

_MARK: Final = b',"checksum":"'


def with_checksum(content: bytes) -> bytes:
    """Return the text of a JSON object, which is not empty, with its checksum as the last entry."""
    body = content.rstrip().removesuffix(b"}")
    return body + _MARK + b'%08x"}\n' % zlib.crc32(body)


def has_its_checksum(content: bytes) -> bool:
    """Tell whether a text has the checksum that it names; one that names none passes."""
    body, mark, end = content.rpartition(_MARK)
    return not mark or end == b'%08x"}\n' % zlib.crc32(body)
