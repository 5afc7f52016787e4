"""Fills the caches with what a dataset needs and they do not hold yet.

Nothing is loaded when nothing is missing: neither torch nor an encoder.

What is wanted may be of any number of pictures, so no list of it is made but of keys, packed: those
in the cache, then those that are missing. Requests and texts are made again for what is missing, a
few at a time, on their way to the encoder.
"""

from anima_pipe.fill.missing import ALONE, FillSummary
from anima_pipe.fill.pictures import fill_latents, fill_masks
from anima_pipe.fill.settings import CacheSettings, LatentSettings, TextSettings
from anima_pipe.fill.texts import fill_text, long_text

__all__ = [
    "ALONE",
    "CacheSettings",
    "FillSummary",
    "LatentSettings",
    "TextSettings",
    "fill_latents",
    "fill_masks",
    "fill_text",
    "long_text",
]
