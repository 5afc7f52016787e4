"""Pictures and captions encoded on the card are what a processor makes of them."""

from __future__ import annotations

import torch

from anima_pipe import demo
from anima_pipe.demo.self_check import TOLERANCE, check_parts
from anima_pipe.encoders import load_text_encoder, load_vae
from gpu.differences import largest
from gpu.random_models import write_vae
from gpu.results import Results
from gpu.setting import Setting, run_part

VAE_WITHIN = 1e-4
TEXT_WITHIN = 1e-4
"""In fp32, of the largest number: what sums in another order come to in so many layers."""
DECODED_WITHIN = 1e-2
"""Pictures are drawn with what torch's defaults allow, TF32 in convolutions; they have 8 bits."""
BF16_WITHIN = 6e-2
CAPTIONS = ["a small fox in the snow", "1girl, teal scarf, smile, night sky, lanterns", "", "fox"]


def measure(setting: Setting, results: Results) -> None:
    """Check the stored numbers, then the VAE at its full width and the text encoder."""
    with results.attempt("the demo's stored numbers"):
        for part in check_parts(setting.device):
            results.check(f"doctor's numbers: {part.part}", part.difference, TOLERANCE)
    with results.attempt("the VAE"):
        check_vae(setting, results)
    with results.attempt("the text encoder"):
        check_text(setting, results)


def check_vae(setting: Setting, results: Results) -> None:
    """Encode and decode on both, and in tiles."""
    path = write_vae(setting)
    card, processor = load_vae(path, device=setting.device), load_vae(path)
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = processor.encode(images)
    here = images.to(setting.device)
    results.check("VAE: latents", largest(card.encode(here), latents), VAE_WITHIN)
    pictures = processor.decode(latents)
    decoded = card.decode(latents.to(setting.device))
    results.check("VAE: decoded pictures", largest(decoded, pictures), DECODED_WITHIN)
    tiled = card.decode(latents.to(setting.device), tile=32)
    results.check("VAE: decoded in tiles", largest(tiled, pictures), DECODED_WITHIN)
    half = load_vae(path, dtype=torch.bfloat16, device=setting.device)
    results.check("VAE: latents in bf16", largest(half.encode(here), latents), BF16_WITHIN)


def check_text(setting: Setting, results: Results) -> None:
    """Encode captions of several lengths on both, one of them empty."""
    encoders = [
        load_text_encoder(demo.DEMO_QWEN, demo.DEMO_T5_TOKENIZER, device=device)
        for device in (setting.device, torch.device("cpu"))
    ]
    card, processor = (encoder.encode(CAPTIONS) for encoder in encoders)
    pairs = [pair for pair in zip(card, processor, strict=True) if len(pair[1].qwen_hidden)]
    worst = max(largest(own.qwen_hidden, other.qwen_hidden) for own, other in pairs)
    results.check("text: hidden states", worst, TEXT_WITHIN)
    same = all(torch.equal(own.t5_ids, other.t5_ids) for own, other in pairs)
    results.holds("text: T5 ids", so=same)


if __name__ == "__main__":
    run_part(measure)
