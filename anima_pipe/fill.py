"""Fills the caches with what a dataset needs and they do not hold yet.

Nothing is loaded when nothing is missing: neither torch nor an encoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anima_pipe.encoders.fingerprints import text_fingerprint, vae_fingerprint
from anima_pipe.errors import DataError
from anima_pipe.records import T5_LIMIT, LatentRequest, MaskRequest, Skipped
from anima_pipe.runtime import Rank
from anima_pipe.shards.contents import cached_keys, cached_shards, long_texts, tidy
from anima_pipe.shards.folders import MASK_CACHE, StoredDtype
from anima_pipe.shards.index import Problem
from anima_pipe.shards.keys import text_key
from anima_pipe.shards.places import require_writable
from anima_pipe.shards.shipping import send_pending

if TYPE_CHECKING:
    import torch

    from anima_pipe.encoders import ImageVae
    from anima_pipe.shards import LatentWriter


ALONE: Final = Rank()

MASKS_PER_TASK: Final = 8
"""Decoded by a process at a time: there is no encoder to wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Where the caches are and how their tensors are stored."""

    folder: Path
    """The cache folder, or the mirror of one elsewhere."""
    dtype: StoredDtype = "fp16"
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSettings:
    """How latents are made."""

    cache: CacheSettings
    vae: Path
    batch_size: int = 1
    """Pictures per pass of the VAE."""
    workers: int = 4
    """Processes that decode pictures while the VAE works; 0: none, in turn."""

    @property
    def cache_name(self) -> str:
        """Which of the latent caches in the folder is this VAE's; reads the file at first."""
        return f"{vae_fingerprint(self.vae)}-{self.cache.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How captions are encoded."""

    cache: CacheSettings
    qwen: Path
    t5_tokenizer_dir: Path
    batch_size: int | None = None
    """Captions per pass of the text encoder; None: see `captions_at_once`."""

    @property
    def cache_name(self) -> str:
        """Which of the text caches in the folder is this encoder's; reads its files at first."""
        return f"{text_fingerprint(self.qwen, self.t5_tokenizer_dir)}-{self.cache.dtype}"


GPU_CAPTIONS: Final = 8

SHOWN_LETTERS: Final = 60
"""Of a caption that is named by its beginning."""


@dataclass(slots=True, kw_only=True)
class FillSummary:
    """What filling a cache came to."""

    encoded: int = 0
    reused: int = 0
    elsewhere: int = 0
    """Missing, and for other processes to encode."""
    failed: list[Skipped] = field(default_factory=list[Skipped])
    """Pictures and captions that were wanted and could not be encoded, each named once."""
    lost: set[str] = field(default_factory=set[str])
    """Keys of that."""
    problems: list[Problem] = field(default_factory=list[Problem])
    """What was found wrong in the cache as it was."""
    shards: int = 0
    """Written in this run."""
    kept_in_bf16: int = 0
    """Texts in an fp16 cache that fp16 cannot hold."""
    long: list[Skipped] = field(default_factory=list[Skipped])
    """Texts that are kept whole although they have more than `T5_LIMIT` tokens."""
    seconds: float = 0.0


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
    cached, problems = cached_keys(folder, "latents", settings.cache_name)
    tidy(folder)
    own, summary = _divide(
        requests, cached, problems, lambda key: requests[key].image.content, rank
    )
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
    cached, problems = cached_keys(folder, "masks", MASK_CACHE)
    tidy(folder)
    own, summary = _divide(
        requests, cached, problems, lambda key: requests[key].image.content, rank
    )
    if own:
        require_writable(folder)
        _write_masks(own, requests, settings, summary)
    summary.seconds = time.monotonic() - started
    return summary


def fill_text(captions: Sequence[str], settings: TextSettings, rank: Rank = ALONE) -> FillSummary:
    """Encode the captions that the cache lacks.

    Args:
        captions: Distinct final texts.
        settings: How they are encoded.
        rank: Encode this process's part of them only; the others encode the rest. Long ones that
            are cached already are named by the first process alone.

    Raises:
        CheckpointError: The text encoder's files are not what they should be.
        ConfigError: The T5 tokenizer folder is not complete.
        OutputError: The cache cannot be written.
    """
    started = time.monotonic()
    send_pending(settings.cache.folder)
    shards, problems = cached_shards(settings.cache.folder, "text", settings.cache_name)
    tidy(settings.cache.folder)
    cached = {key for shard in shards for key in shard.keys}
    texts = {text_key(caption): caption for caption in captions}
    own, summary = _divide(texts, cached, problems, lambda key: key, rank)
    if rank.number == 0:
        tokens = long_texts(shards, T5_LIMIT)
        summary.long += [_long(text, tokens[key]) for key, text in texts.items() if key in tokens]
    if own:
        require_writable(settings.cache.folder)
        _encode_text([texts[key] for key in own], settings, summary)
    summary.seconds = time.monotonic() - started
    return summary


def _divide(
    wanted: Collection[str],
    cached: Container[str],
    problems: list[Problem],
    share: Callable[[str], str],
    rank: Rank,
) -> tuple[list[str], FillSummary]:
    """Return the missing keys that are this process's to fill, and the summary as it begins.

    Args:
        wanted: All keys that are needed.
        cached: Those that are there.
        problems: Found in the cache.
        share: What decides which process a key is for. For pictures it is their content, so that
            both orientations of one are decoded in the same process.
        rank: This process.
    """
    missing = [key for key in wanted if key not in cached]
    own = [key for key in missing if rank.takes(share(key))]
    summary = FillSummary(
        reused=len(wanted) - len(missing), elsewhere=len(missing) - len(own), problems=problems
    )
    return own, summary


def _encode_latents(
    missing: list[str],
    requests: Mapping[str, LatentRequest],
    settings: LatentSettings,
    summary: FillSummary,
) -> None:
    import torch

    from anima_pipe.encoders import load_vae
    from anima_pipe.runtime import choose_device, progress_bar
    from anima_pipe.shards import LatentWriter
    from anima_pipe.source.decode import decode_in_workers
    from anima_pipe.source.images import load_pixels

    # Like buckets together for full batches; both orientations of a picture stay side by side.
    missing.sort(key=lambda key: requests[key].choice.bucket)
    folders = {requests[key].image.path.parent for key in missing}
    device = choose_device(settings.cache.device)
    vae = load_vae(settings.vae, dtype=torch.float32, device=device)
    fingerprint = vae_fingerprint(settings.vae)
    writer = LatentWriter(
        settings.cache.folder, fingerprint, settings.cache.dtype, settings.vae.name
    )
    bar = progress_bar(len(missing), "image", "latents")
    lost = set(missing)
    wanted = (requests[key] for key in missing)
    with writer, bar:
        for batch in decode_in_workers(load_pixels, wanted, settings.batch_size, settings.workers):
            if batch.failures:
                _refuse_lost_folders(folders)
            summary.failed += batch.failures
            if batch.requests:
                encoded, failed = _add_latents(writer, vae, batch.requests, batch.pixels.to(device))
                lost -= encoded
                summary.failed += failed
            bar.update(len(batch.requests) + len(batch.failures))
    summary.encoded = len(missing) - len(lost)
    summary.failed = list(dict.fromkeys(summary.failed))
    summary.lost = lost
    summary.shards = writer.summary.shards


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
    missing: list[str],
    requests: Mapping[str, MaskRequest],
    settings: LatentSettings,
    summary: FillSummary,
) -> None:
    from anima_pipe.runtime import progress_bar
    from anima_pipe.shards import MaskWriter
    from anima_pipe.source.decode import decode_in_workers
    from anima_pipe.source.images import load_mask

    missing.sort(key=lambda key: requests[key].choice.bucket)
    folders = {requests[key].image.path.parent for key in missing}
    writer = MaskWriter(settings.cache.folder)
    lost = set(missing)
    wanted = (requests[key] for key in missing)
    with writer, progress_bar(len(missing), "mask", "masks") as bar:
        for batch in decode_in_workers(load_mask, wanted, MASKS_PER_TASK, settings.workers):
            if batch.failures:
                _refuse_lost_folders(folders)
            summary.failed += batch.failures
            for request, mask in zip(batch.requests, batch.pixels, strict=True):
                writer.add(request.key, mask, _metadata(request) | {"channel": request.channel})
                lost.discard(request.key)
            bar.update(len(batch.requests) + len(batch.failures))
    summary.encoded = len(missing) - len(lost)
    summary.failed = list(dict.fromkeys(summary.failed))
    summary.lost = lost
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
        "image": request.image.path.name,
        "image_size": list(request.image.size),
        "bucket": list(choice.bucket),
        "resized": list(choice.resized),
        "crop": list(choice.crop),
        "flipped": request.flipped,
    }


def _encode_text(missing: list[str], settings: TextSettings, summary: FillSummary) -> None:
    import torch

    from anima_pipe.encoders import load_text_encoder
    from anima_pipe.runtime import choose_device, progress_bar
    from anima_pipe.shards import TextWriter

    # Captions of like length share a batch: less padding.
    missing.sort(key=len)
    device = choose_device(settings.cache.device)
    encoder = load_text_encoder(
        settings.qwen, settings.t5_tokenizer_dir, dtype=torch.float32, device=device
    )
    fingerprint = text_fingerprint(settings.qwen, settings.t5_tokenizer_dir)
    writer = TextWriter(
        settings.cache.folder, fingerprint, settings.cache.dtype, settings.qwen.name
    )
    bar = progress_bar(len(missing), "caption", "texts")
    with writer, bar:
        for captions in _chunks(missing, settings.batch_size or captions_at_once(device)):
            for caption, condition in zip(captions, encoder.encode(captions), strict=True):
                try:
                    writer.add(text_key(caption), condition, {"caption": caption})
                except DataError as error:
                    summary.failed.append(Skipped(name=repr(caption), reason=error.problem))
                if (tokens := len(condition.t5_ids)) > T5_LIMIT:
                    summary.long.append(_long(caption, tokens))
            bar.update(len(captions))
    summary.encoded = writer.summary.samples
    summary.shards = writer.summary.shards
    summary.kept_in_bf16 = len(writer.summary.kept_in_bf16)


def captions_at_once(device: torch.device) -> int:
    """Return how many captions are encoded in one pass.

    On the processor one: several are hardly faster, and how a value is rounded in the last bit
    would depend on the others, and so on what was encoded before or by other processes.
    """
    return 1 if device.type == "cpu" else GPU_CAPTIONS


def _long(caption: str, tokens: int) -> Skipped:
    return Skipped(name=f"{caption[:SHOWN_LETTERS]!r}...", reason=f"{tokens} T5 tokens")


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
