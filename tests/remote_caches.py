"""What tests of caches at an address share: small caches, and what lies in a bucket."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from click.testing import CliRunner, Result
from s3_server import BUCKET, FaultyServer, client

from anima_pipe.cli.main import main
from anima_pipe.runtime import LOGGER
from anima_pipe.shards import LatentWriter, Store

FINGERPRINT = "3fa1c2" + 58 * "0"
CACHE = f"s3://{BUCKET}/some/cache"
WHOLE_SHARD = 1 << 20
GB = 1e-9


def write(place: Path | str, numbers: Iterable[int], *, shard_bytes: int = WHOLE_SHARD) -> None:
    with LatentWriter(place, FINGERPRINT, "fp16", "vae", shard_bytes) as writer:
        for number in numbers:
            writer.add(f"key{number}", torch.full((16, 8, 8), float(number)), {"n": number})


def values(store: Store[torch.Tensor]) -> dict[str, float]:
    return {key: store[key].float().mean().item() for key in store}


def expected(numbers: Iterable[int]) -> dict[str, float]:
    return {f"key{number}": float(number) for number in numbers}


def in_bucket(server: FaultyServer) -> dict[str, bytes]:
    """Return the cache's files, read by nothing of ours."""
    s3 = client(server)
    listed = s3.list_objects_v2(Bucket=BUCKET).get("Contents", ())
    return {
        entry["Key"].removeprefix("some/cache/"): s3.get_object(Bucket=BUCKET, Key=entry["Key"])[
            "Body"
        ].read()
        for entry in listed
    }


def put(server: FaultyServer, name: str, content: bytes) -> None:
    client(server).put_object(Bucket=BUCKET, Key=f"some/cache/{name}", Body=content)


def the_tar(server: FaultyServer) -> tuple[str, bytes]:
    [found] = [(name, body) for name, body in in_bucket(server).items() if name.endswith(".tar")]
    return found


def flipped(content: bytes) -> bytes:
    """Flip one bit of the first sample's tensor."""
    place = content.index(b"latent", 512) + 400
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def cut_off(content: bytes) -> bytes:
    return content[:1000]


def cache(*arguments: object) -> Result:
    """Run `anima-pipe cache`."""
    result = CliRunner().invoke(main, ["cache", *map(str, arguments)])
    LOGGER.handlers.clear()
    return result
