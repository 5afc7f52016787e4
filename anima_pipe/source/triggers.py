"""What calls the subject of a training: the tags that its captions share, and captions without."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from anima_pipe.source.captions import CaptionRules, is_leading_tag, plain_tag, tags_of_caption

SHARE: Final = 0.9
"""Of the captions, that a tag must be in to be shared: a few are always written differently."""

LEAST_CAPTIONS: Final = 3
"""Of fewer, tags that happen to be alike say nothing."""


def shared_tags(captions: Sequence[str], rules: CaptionRules) -> tuple[str, ...]:
    """Return the tags that nearly all captions have, in the order of the first that has them.

    Those of quality, safety and count are left out: they call no subject.

    Args:
        captions: Final texts.
        rules: That they were made by.
    """
    if len(captions) < LEAST_CAPTIONS:
        return ()
    counts: Counter[str] = Counter()
    for caption in captions:
        tags = tags_of_caption(caption, rules)
        # Not a set, whose order is another one in every process.
        plain = [plain_tag(tag) for tag in tags if not is_leading_tag(tag)]
        counts.update(list(dict.fromkeys(plain)))
    least = SHARE * len(captions)
    return tuple(tag for tag, count in counts.items() if count >= least)


def without_trigger(caption: str, trigger: Sequence[str], rules: CaptionRules) -> str:
    """Return a caption without what calls the subject, in its tags and in its sentences.

    Args:
        caption: A final text; it comes back as it is where nothing in it is of the trigger.
        trigger: Words, each perhaps several; spaces also stand for underscores, capitals do not
            matter.
        rules: That the caption was made by.
    """
    rest = caption
    # Longest first: "red fox" before "fox", which would leave "red" behind.
    for words in sorted(trigger, key=len, reverse=True):
        rest = _pattern(words).sub("", rest)
    if rest == caption:
        return caption
    separator = rules.caption_separator
    pieces = (" ".join(piece.split()) for piece in rest.split(separator))
    said = (piece for piece in pieces if any(letter.isalnum() for letter in piece))
    return f"{separator} ".join(said)


def _pattern(words: str) -> re.Pattern[str]:
    """Return what finds words as a whole; scripts without spaces have no ends of words to tell."""
    spelt = "[ _]+".join(re.escape(word) for word in re.split(r"[ _]+", words.strip()))
    return re.compile(rf"(?<![0-9A-Za-z]){spelt}(?![0-9A-Za-z])", re.IGNORECASE)
