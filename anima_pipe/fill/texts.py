"""Filling the text cache."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from anima_pipe.encoders.fingerprints import text_fingerprint
from anima_pipe.errors import DataError
from anima_pipe.fill.missing import ALONE, FillSummary, divide
from anima_pipe.fill.settings import TextSettings
from anima_pipe.records import T5_LIMIT, Skipped, Text
from anima_pipe.runtime import Rank, counted
from anima_pipe.shards.contents import held_in, tidy
from anima_pipe.shards.keys import text_key
from anima_pipe.shards.packed_keys import KeyPlaces, PackedKeys
from anima_pipe.shards.places import require_writable
from anima_pipe.shards.shipping import send_mended, send_pending

if TYPE_CHECKING:
    import torch

SORTED_TEXTS: Final = 4096
"""Missing texts that are sorted by length at a time, before they are put into batches."""

GPU_CAPTIONS: Final = 8

SHOWN_LETTERS: Final = 60
"""Of a text that is named by its beginning."""


def fill_text(texts: Iterable[Text], settings: TextSettings, rank: Rank = ALONE) -> FillSummary:
    """Encode the texts that the cache lacks.

    Args:
        texts: Final texts, some perhaps more than once; gone through twice where one is missing.
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
    held = held_in(settings.cache.folder, "text", settings.cache_name)
    send_mended(settings.cache.folder)
    tidy(settings.cache.folder)
    wanted = PackedKeys()
    long: dict[str, Skipped] = {}
    for text in texts:
        key = text_key(text)
        wanted.append(key)
        if key in held.long_texts:
            long[key] = long_text(text, held.long_texts[key])
    own, summary = divide(KeyPlaces(wanted).distinct(), held, lambda key: key, rank)
    if rank.number == 0:
        summary.long += long.values()
    if own:
        require_writable(settings.cache.folder)
        _encode_text(own, texts, settings, summary)
    summary.seconds = time.monotonic() - started
    return summary


def _encode_text(
    missing: PackedKeys, texts: Iterable[Text], settings: TextSettings, summary: FillSummary
) -> None:
    import torch

    from anima_pipe.encoders import load_text_encoder
    from anima_pipe.progress import progress_bar
    from anima_pipe.runtime import choose_device
    from anima_pipe.shards import TextWriter
    from anima_pipe.shards.text import text_metadata

    device = choose_device(settings.cache.device)
    encoder = load_text_encoder(
        settings.qwen, settings.t5_tokenizer_dir, dtype=torch.float32, device=device
    )
    fingerprint = text_fingerprint(settings.qwen, settings.t5_tokenizer_dir)
    writer = TextWriter(
        settings.cache.folder, fingerprint, settings.cache.dtype, settings.qwen.name
    )
    batch_size = settings.batch_size
    if batch_size is None:
        batch_size = captions_at_once(device)
    seen = 0
    with writer, progress_bar(len(missing), "caption", "texts") as bar:
        for batch in _batches(_missing_texts(texts, missing), batch_size):
            for text, condition in zip(batch, encoder.encode(batch), strict=True):
                try:
                    writer.add(text_key(text), condition, text_metadata(text, condition))
                except DataError as error:
                    summary.failed.append(Skipped(name=repr(str(text)), reason=error.problem))
                if (tokens := len(condition.t5_ids)) > T5_LIMIT:
                    summary.long.append(long_text(text, tokens))
            seen += len(batch)
            bar.update(len(batch))
    if gone := len(missing) - seen:
        reason = "no caption says it any more: one changed meanwhile; run the stage again"
        summary.failed.append(Skipped(name=counted(gone, "text"), reason=reason))
    summary.encoded = writer.summary.samples
    summary.shards = writer.summary.shards
    summary.kept_in_bf16 = len(writer.summary.kept_in_bf16)


def captions_at_once(device: torch.device) -> int:
    """Return how many captions are encoded in one pass.

    On the processor one: several are hardly faster, and how a value is rounded in the last bit
    would depend on the others, and so on what was encoded before or by other processes.
    """
    return 1 if device.type == "cpu" else GPU_CAPTIONS


def _missing_texts(texts: Iterable[Text], missing: PackedKeys) -> Iterator[Text]:
    """Yield the texts whose keys are missing, each once."""
    places = KeyPlaces(missing)
    found = bytearray(len(missing))
    for text in texts:
        place = places.find(text_key(text))
        if place is not None and not found[place]:
            found[place] = True
            yield text


def _batches(texts: Iterator[Text], size: int) -> Iterator[list[Text]]:
    """Yield so many texts at a time, those of like length together: less padding."""
    while some := sorted(islice(texts, SORTED_TEXTS), key=lambda text: len(str(text))):
        for start in range(0, len(some), size):
            yield some[start : start + size]


def long_text(text: Text, tokens: int) -> Skipped:
    """Return how a text over the limit of T5 tokens is named."""
    return Skipped(name=f"{str(text)[:SHOWN_LETTERS]!r}...", reason=f"{tokens} T5 tokens")
