"""Many keys in little room: 16 bytes each, where a set of texts takes 150.

What a caching stage holds of a dataset or of a cache is its keys; packed, those of a million
samples are 16 MB. Importing this does not import numpy: whoever only asks for help has no keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEY_BYTES: Final = 16
"""A key of `anima_pipe.shards.keys` is so many bytes, in hexadecimal digits."""


class PackedKeys:
    """A list of keys of pictures, masks or texts; it only grows.

    Args:
        keys: Those it begins with.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = bytearray()
        self.extend(keys)

    def append(self, key: str) -> None:
        """Add a key: 32 hexadecimal digits."""
        digest = bytes.fromhex(key)
        if len(digest) != KEY_BYTES:
            raise ValueError(f"{key!r} is no key")
        self._digests += digest

    def extend(self, keys: Iterable[str]) -> None:
        """Add several."""
        for key in keys:
            self.append(key)

    def __len__(self) -> int:
        return len(self._digests) // KEY_BYTES

    def __getitem__(self, place: int) -> str:
        return self._digests[place * KEY_BYTES : (place + 1) * KEY_BYTES].hex()

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def digests(self) -> NDArray[np.bytes_]:
        """Return S16[N], which numpy can sort and search; while it is in use, the list is fixed."""
        return _as_array(self._digests)


class KeyPlaces:
    """Where each key first stands in a list that does not change any more.

    Args:
        keys: The list.
    """

    def __init__(self, keys: PackedKeys) -> None:
        import numpy as np

        self._keys = keys
        self._sorted, self._firsts = np.unique(keys.digests(), return_index=True)

    def __len__(self) -> int:
        """Return how many keys there are, each counted once."""
        return len(self._sorted)

    def find(self, key: str) -> int | None:
        """Return the first place of a key; None where it is not in the list."""
        found = _place_of(self._sorted, _digest_of(key))
        return None if found is None else int(self._firsts[found])

    def distinct(self) -> Iterator[str]:
        """Go over the keys in the order of the list, each once."""
        import numpy as np

        for place in np.sort(self._firsts):
            yield self._keys[int(place)]


class KeySet:
    """A set of names of samples, of which it can only be asked whether it holds one.

    Names that are not such keys (somebody else may have written a shard) are held by their hash.
    """

    def __init__(self) -> None:
        self._sorted: NDArray[np.bytes_] | None = None
        # What was added since lies beside it until somebody asks.
        self._added = bytearray()

    def update(self, names: Iterable[str]) -> None:
        """Add names."""
        for name in names:
            self._added += _digest_of(name)

    def __contains__(self, name: str) -> bool:
        import numpy as np

        if self._added:
            known = [] if self._sorted is None else [self._sorted]
            # Stable: that is the merge of what is sorted already with the little that is not.
            self._sorted = np.concatenate([*known, _as_array(self._added)])
            self._sorted.sort(kind="stable")
            self._added = bytearray()
        return self._sorted is not None and _place_of(self._sorted, _digest_of(name)) is not None


def _as_array(digests: bytearray) -> NDArray[np.bytes_]:
    import numpy as np

    return np.frombuffer(digests, f"S{KEY_BYTES}")


def _place_of(digests: NDArray[np.bytes_], digest: bytes) -> int | None:
    """Return where a digest stands among sorted ones, S16[N]; None if it is not there."""
    place = int(digests.searchsorted(digest))
    # As numpy gives an entry back, without zeros at its end.
    is_there = place < len(digests) and digests[place] == digest.rstrip(b"\0")
    return place if is_there else None


def _digest_of(name: str) -> bytes:
    """Return the 16 bytes that a key is, or that stand for another name."""
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        digest = b""
    if len(digest) == KEY_BYTES and digest.hex() == name:
        return digest
    return hashlib.blake2b(name.encode(), digest_size=KEY_BYTES).digest()
