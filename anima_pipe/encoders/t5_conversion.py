"""The fast tokenizer that belongs to a sentencepiece model of T5's kind."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SENTINELS: Final = 100
"""T5's <extra_id_N>, which follow the pieces in falling order."""

_SPECIAL: Final = ("<pad>", "</s>", "<unk>")


def write_fast_tokenizer(pieces: bytes, target: Path, *, sentinels: int = SENTINELS) -> int:
    """Write the tokenizer.json that gives the same ids as a spiece.model, and `</s>`.

    Args:
        pieces: The content of spiece.model.
        target: The file to write.
        sentinels: How many <extra_id_N> to add behind the pieces.

    Returns:
        The number of pieces.

    Raises:
        ValueError: The content is no sentencepiece model.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    try:
        # The class is made at run time from its descriptor, so that no checker sees it.
        proto = sentencepiece_model_pb2.ModelProto.FromString(pieces)  # pyright: ignore[reportAttributeAccessIssue]
    except DecodeError as error:
        raise ValueError("not a sentencepiece model") from error
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    extra = [f"<extra_id_{number}>" for number in reversed(range(sentinels))]
    unigram = [*vocabulary, *((name, 0.0) for name in extra)]
    tokenizer = Tokenizer(models.Unigram(unigram, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens([*_SPECIAL, *extra])
    tokenizer.save(str(target))
    return len(vocabulary)
