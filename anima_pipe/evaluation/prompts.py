"""Drawing prompts with a model's files, with an adapter on it or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from anima_pipe.adapters import load_adapter
from anima_pipe.drawing.painter import EncodedPrompt, LazyVae, Painter
from anima_pipe.encoders import load_text_encoder
from anima_pipe.model import load_transformer
from anima_pipe.records import PreviewPrompt
from anima_pipe.source.prompts import prompt_texts, read_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files of a model that draws."""

    transformer: Path
    vae: Path
    qwen: Path
    t5_tokenizer: Path


def draw_prompts(
    files: ModelFiles, prompts: Sequence[PreviewPrompt], adapter: Path | None = None
) -> list[Image.Image]:
    """Draw prompts in fp32 on the processor, with an adapter at full strength if one is given."""
    encoder = load_text_encoder(files.qwen, files.t5_tokenizer)
    texts = list(dict.fromkeys(prompt_texts(prompts)))
    conditions = dict(zip(texts, encoder.encode(texts), strict=True))
    transformer = load_transformer(files.transformer)
    if adapter is not None:
        load_adapter(adapter, transformer)
    place = torch.device("cpu")
    painter = Painter(transformer, LazyVae(files.vae, place), place, torch.float32)
    return [
        painter.draw(
            EncodedPrompt(
                prompt=prompt,
                positive=conditions[read_prompt(prompt.prompt)],
                negative=conditions[read_prompt(prompt.negative)],
            )
        )
        for prompt in prompts
    ]
