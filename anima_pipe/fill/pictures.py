"""Filling the caches of latents and masks: pictures are decoded in worker processes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anima_pipe.encoders.fingerprints import vae_fingerprint
from anima_pipe.errors import DataError
from anima_pipe.fill.missing import ALONE, FillSummary, divide
from anima_pipe.fill.settings import LatentSettings
from anima_pipe.plain_text import in_utf8
from anima_pipe.records import LatentRequest, MaskRequest, Skipped
from anima_pipe.runtime import Rank
from anima_pipe.shards.contents import held_in, tidy
from anima_pipe.shards.folders import MASK_CACHE
from anima_pipe.shards.packed_keys import KeySet, PackedKeys
from anima_pipe.shards.places import require_writable
from anima_pipe.shards.shipping import send_mended, send_pending
from anima_pipe.source.damage import remember
from anima_pipe.source.deadly import DeadlyPictures
from anima_pipe.transfer import on_device

if TYPE_CHECKING:
    import torch

    from anima_pipe.encoders import ImageVae
    from anima_pipe.shards import LatentWriter


MASKS_PER_TASK: Final = 8
"""Decoded by a process at a time: there is no encoder to wait for."""


def fill_latents(
    requests: Mapping[str, LatentRequest], settings: LatentSettings, rank: Rank = ALONE
) -> FillSummary:
    """Encode the latents that the cache lacks.

    Args:
        requests: All latents that are needed, by key.
        settings: How they are made.
        rank: Encode this process's part of them only; the others encode the rest.

    Raises:
        CheckpointError: The VAE's file is not one.
        DataError: A folder of pictures went away; what was encoded until then is kept.
        OutputError: The cache cannot be written.
    """
    started = time.monotonic()
    folder = settings.cache.folder
    send_pending(folder)
    held = held_in(folder, "latents", settings.cache_name)
    send_mended(folder)
    tidy(folder)
    own, summary = divide(requests, held, lambda key: requests[key].image.content, rank)
    if own:
        require_writable(folder)
        _encode_latents(own, requests, settings, summary)
    summary.seconds = time.monotonic() - started
    return summary


def fill_masks(
    requests: Mapping[str, MaskRequest], settings: LatentSettings, rank: Rank = ALONE
) -> FillSummary:
    """Cache the masks that the cache lacks, beside the latents of whatever VAE.

    Args:
        requests: All masks that are needed, by key.
        settings: Where the cache is, and how many processes decode.
        rank: Do this process's part of them only; the others do the rest.

    Raises:
        OutputError: The cache cannot be written.
    """
    started = time.monotonic()
    folder = settings.cache.folder
    send_pending(folder)
    held = held_in(folder, "masks", MASK_CACHE)
    send_mended(folder)
    tidy(folder)
    own, summary = divide(requests, held, lambda key: requests[key].image.content, rank)
    if own:
        require_writable(folder)
        _write_masks(own, requests, settings, summary)
    summary.seconds = time.monotonic() - started
    return summary


def _encode_latents(
    missing: PackedKeys,
    requests: Mapping[str, LatentRequest],
    settings: LatentSettings,
    summary: FillSummary,
) -> None:
    import torch

    from anima_pipe.encoders import load_vae
    from anima_pipe.progress import progress_bar
    from anima_pipe.runtime import choose_device
    from anima_pipe.shards import LatentWriter
    from anima_pipe.source.decode import decode_in_workers
    from anima_pipe.source.images import load_pixels

    missing, folders = _by_bucket(missing, requests)
    device = choose_device(settings.cache.device)
    vae = load_vae(settings.vae, dtype=torch.float32, device=device)
    fingerprint = vae_fingerprint(settings.vae)
    writer = LatentWriter(
        settings.cache.folder, fingerprint, settings.cache.dtype, settings.vae.name
    )
    bar = progress_bar(len(missing), "image", "latents")
    stored = KeySet()
    wanted = (requests[key] for key in missing)
    decoded = decode_in_workers(load_pixels, wanted, settings.batch_size, settings.workers)
    with writer, bar, closing(decoded):
        for batch in decoded:
            if batch.failures:
                _refuse_lost_folders(folders)
            summary.failed += batch.failures
            DeadlyPictures(settings.cache.folder).add(batch.deadly)
            summary.damaged += batch.damaged
            remember(settings.cache.folder, batch.damaged)
            if batch.requests:
                encoded, failed = _add_latents(
                    writer, vae, batch.requests, on_device(batch.pixels, device)
                )
                stored.update(encoded)
                summary.failed += failed
            bar.update(len(batch.requests) + len(batch.failures))
    summary.lost = {key for key in missing if key not in stored}
    summary.encoded = len(missing) - len(summary.lost)
    summary.failed = list(dict.fromkeys(summary.failed))
    summary.shards = writer.summary.shards


def _by_bucket(
    missing: PackedKeys, requests: Mapping[str, LatentRequest] | Mapping[str, MaskRequest]
) -> tuple[PackedKeys, set[Path]]:
    """Put like buckets together, for full batches, and tell in which folders the pictures are.

    Both orientations of a picture stay side by side.
    """
    buckets: defaultdict[tuple[int, int], PackedKeys] = defaultdict(PackedKeys)
    folders: set[Path] = set()
    for key in missing:
        request = requests[key]
        buckets[request.choice.bucket].append(key)
        folders.add(request.image.path.parent)
    return PackedKeys(chain.from_iterable(buckets[size] for size in sorted(buckets))), folders


def _add_latents(
    writer: LatentWriter, vae: ImageVae, requests: Sequence[LatentRequest], pixels: torch.Tensor
) -> tuple[set[str], list[Skipped]]:
    """Encode pictures of one size, UInt8[B, height, width, 3], and store their latents.

    Returns:
        The keys of those that were stored, and pictures that the VAE made something of that is
        not finite.
    """
    encoded: set[str] = set()
    failed: list[Skipped] = []
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    for request, latent in zip(requests, vae.encode(images).cpu(), strict=True):
        try:
            writer.add(request.key, latent, _metadata(request))
        except DataError as error:
            failed.append(Skipped(name=request.name, reason=error.problem))
        else:
            encoded.add(request.key)
    return encoded, failed


def _write_masks(
    missing: PackedKeys,
    requests: Mapping[str, MaskRequest],
    settings: LatentSettings,
    summary: FillSummary,
) -> None:
    from anima_pipe.progress import progress_bar
    from anima_pipe.shards import MaskWriter
    from anima_pipe.source.decode import decode_in_workers
    from anima_pipe.source.images import load_mask

    missing, folders = _by_bucket(missing, requests)
    writer = MaskWriter(settings.cache.folder)
    stored = KeySet()
    wanted = (requests[key] for key in missing)
    decoded = decode_in_workers(load_mask, wanted, MASKS_PER_TASK, settings.workers)
    with writer, progress_bar(len(missing), "mask", "masks") as bar, closing(decoded):
        for batch in decoded:
            if batch.failures:
                _refuse_lost_folders(folders)
            summary.failed += batch.failures
            DeadlyPictures(settings.cache.folder).add(batch.deadly)
            summary.damaged += batch.damaged
            remember(settings.cache.folder, batch.damaged)
            for request, mask in zip(batch.requests, batch.pixels, strict=True):
                writer.add(request.key, mask, _metadata(request) | {"channel": request.channel})
                stored.update([request.key])
            bar.update(len(batch.requests) + len(batch.failures))
    summary.lost = {key for key in missing if key not in stored}
    summary.encoded = len(missing) - len(summary.lost)
    summary.failed = list(dict.fromkeys(summary.failed))
    summary.shards = writer.summary.shards


def _refuse_lost_folders(folders: Iterable[Path]) -> None:
    """Tell a disk that was unplugged, or a share that went away, from pictures that are damaged.

    Raises:
        DataError: A folder of pictures or masks is gone, or empty as a mount point is left.
    """
    for folder in folders:
        try:
            is_there = any(folder.iterdir())
        except OSError:
            is_there = False
        if not is_there:
            raise DataError(
                f"the pictures in {folder} are no longer there",
                "connect the disk or share again and run the same command: what is encoded is kept",
            )


def _metadata(request: LatentRequest | MaskRequest) -> dict[str, object]:
    choice = request.choice
    return {
        "image": in_utf8(request.image.path.name),
        "image_size": list(request.image.size),
        "bucket": list(choice.bucket),
        "resized": list(choice.resized),
        "crop": list(choice.crop),
        "flipped": request.flipped,
    }
