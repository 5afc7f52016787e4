"""Drawing a prompt as inference programs would: noise by the seed, Euler steps, the VAE."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from anima_pipe import __version__
from anima_pipe.dataset.batches import pad_texts
from anima_pipe.drawing.denoise import Velocity, euler, guided, simple_schedule
from anima_pipe.encoders import ImageVae, load_vae
from anima_pipe.files import write_atomically
from anima_pipe.model import AnimaTransformer
from anima_pipe.model.evaluation import evaluating
from anima_pipe.plain_text import in_utf8
from anima_pipe.records import LATENT_CHANNELS, PreviewPrompt, TextCondition
from anima_pipe.shards import Cache, text_key
from anima_pipe.shards.text import prompt_condition
from anima_pipe.source.prompts import prompt_texts, read_prompt
from anima_pipe.transfer import on_device

if TYPE_CHECKING:
    from anima_pipe.encoders import TextEncoder

Decode = Callable[[torch.Tensor], torch.Tensor]
"""Normalised latents Float[1, 16, H, W] -> pictures Float[1, 3, 8H, 8W] in [-1, 1]."""


VAE_STRIDE = 8
DECODE_TILE = 1024
"""Side of the tiles that larger pictures are decoded in, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt with its texts encoded, so that no text encoder is needed while drawing."""

    prompt: PreviewPrompt
    positive: TextCondition
    negative: TextCondition


class Painter:
    """Draws encoded prompts with a transformer and whatever adapters are on it.

    Args:
        transformer: The model.
        decode: From latents to pictures.
        device: Where the transformer is.
        dtype: Of the transformer's weights.
    """

    def __init__(
        self,
        transformer: AnimaTransformer,
        decode: Decode,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.transformer = transformer
        self.decode = decode
        self.device = device
        self.dtype = dtype

    def draw(self, encoded: EncodedPrompt) -> Image.Image:
        """Denoise and decode one prompt; its seed alone decides the noise."""
        with evaluating(self.transformer):
            return to_picture(self.decode(self._denoised(encoded)))

    def denoise(self, encoded: EncodedPrompt) -> torch.Tensor:
        """Return one prompt's latents, Float[1, 16, H, W], not decoded."""
        with evaluating(self.transformer):
            return self._denoised(encoded)

    def _denoised(self, encoded: EncodedPrompt) -> torch.Tensor:
        prompt = encoded.prompt
        shape = (1, LATENT_CHANNELS, prompt.height // VAE_STRIDE, prompt.width // VAE_STRIDE)
        generator = torch.Generator().manual_seed(prompt.seed)
        noise = on_device(torch.randn(shape, generator=generator), self.device)
        velocity = guided(
            self._velocity(encoded.positive), self._velocity(encoded.negative), prompt.guidance
        )
        sigmas = on_device(simple_schedule(prompt.steps, prompt.shift), self.device)
        return euler(noise, sigmas, velocity)

    def _velocity(self, condition: TextCondition) -> Velocity:
        text = pad_texts([condition]).to(self.device, self.dtype)
        context = self.transformer.preprocess_text_embeds(
            text.qwen_hidden, text.t5_ids, text.qwen_mask, text.t5_mask, text.t5_weights
        )
        return lambda latents, sigma: self.transformer(latents.to(self.dtype), sigma, context)


class LazyVae:
    """Decodes latents with a VAE that is loaded when a picture is drawn, and stays until released.

    Args:
        path: The VAE's file.
        device: Where to decode.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.device = device
        self._vae: ImageVae | None = None

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode normalised latents, Float[1, 16, H, W], in tiles where they are large."""
        if self._vae is None:
            self._vae = load_vae(self.path, dtype=torch.float32, device=self.device)
        return self._vae.decode(latents, tile=DECODE_TILE)

    def release(self) -> None:
        """Give its memory back, to the device too; the next picture loads it again."""
        if self._vae is None:
            return
        self._vae = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def encoded_prompts(prompts: Sequence[PreviewPrompt], cache: Cache) -> list[EncodedPrompt]:
    """Take the prompts' texts from the cache.

    Raises:
        CacheError: A prompt's text is not there.
    """
    return [
        EncodedPrompt(
            prompt=prompt,
            positive=prompt_condition(cache.text, text_key(read_prompt(prompt.prompt))),
            negative=prompt_condition(cache.text, text_key(read_prompt(prompt.negative))),
        )
        for prompt in prompts
    ]


def encode_prompts(
    prompts: Iterable[PreviewPrompt], encoder: TextEncoder
) -> dict[PreviewPrompt, EncodedPrompt]:
    """Encode every distinct text of prompts once, positive and negative."""
    prompts = list(dict.fromkeys(prompts))
    texts = list(dict.fromkeys(prompt_texts(prompts)))
    conditions = dict(zip(texts, encoder.encode(texts), strict=True))
    return {
        prompt: EncodedPrompt(
            prompt=prompt,
            positive=conditions[read_prompt(prompt.prompt)],
            negative=conditions[read_prompt(prompt.negative)],
        )
        for prompt in prompts
    }


def to_picture(pixels: torch.Tensor) -> Image.Image:
    """Turn Float[1, 3, height, width] in [-1, 1] into an 8-bit RGB picture."""
    scaled = ((pixels[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy()))


def base_name(transformer: Path, llm_adapter: Path | None) -> str:
    """Return what pictures say that they were drawn with: the names of the base's files."""
    return " + ".join(path.stem for path in (transformer, llm_adapter) if path)


def parameters_text(
    prompt: PreviewPrompt, model: str, adapters: Sequence[tuple[str, float]] = ()
) -> str:
    """Return what a picture was drawn with, as AUTOMATIC1111's web UI writes it into its PNGs.

    ComfyUI and most viewers of generated pictures read that form: the prompt with a tag for each
    adapter, a line with the negative prompt, a line of settings.

    Args:
        prompt: What was drawn.
        model: Name of the base model, without its folder.
        adapters: Names and strengths of those that inference programs can load.
    """
    tags = [f"<lora:{name}:{strength:g}>" for name, strength in adapters]
    settings = {
        "Steps": prompt.steps,
        "Sampler": "Euler",
        "Schedule type": "Simple",
        "CFG scale": f"{prompt.guidance:g}",
        "Shift": f"{prompt.shift:g}",
        "Seed": prompt.seed,
        "Size": f"{prompt.width}x{prompt.height}",
        # Commas and colons part the settings; what has one stands in quotes.
        "Model": json.dumps(model) if set(model) & set(',:"') else model,
        "Version": f"anima-pipe {__version__}",
    }
    line = ", ".join(f"{name}: {value}" for name, value in settings.items())
    return in_utf8(
        f"{' '.join([prompt.prompt, *tags])}\nNegative prompt: {prompt.negative}\n{line}"
    )


def save_picture(picture: Image.Image, path: Path, parameters: str | None = None) -> None:
    """Write a PNG; `parameters` goes into its metadata under that name.

    Raises:
        OutputError: It cannot be written.
    """
    info = PngInfo()
    if parameters is not None:
        info.add_itxt("parameters", parameters)
    buffer = BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    write_atomically(path, buffer.getvalue())
