"""Pictures and captions encoded in a second, by a VAE and a text encoder of the released sizes."""

from __future__ import annotations

import torch

from anima_pipe import demo
from anima_pipe.encoders import load_text_encoder, load_vae
from gpu.random_models import write_qwen, write_vae
from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.timing import PeakMemory, seconds_each

DTYPES = (torch.float32, torch.bfloat16)
BATCH_SIZES = (1, 4)
CAPTIONS = 256
CAPTION = "1girl, solo, long hair, teal scarf, smile, night sky, lanterns, wide shot, masterpiece"


def measure(setting: Setting, results: Results) -> None:
    """Measure both encoders in both precisions that the library offers."""
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        with results.attempt(f"pictures in {name}"):
            pictures(setting, results, dtype)
        with results.attempt(f"captions in {name}"):
            captions(setting, results, dtype)


def pictures(setting: Setting, results: Results, dtype: torch.dtype) -> None:
    """Encode random pictures that lie on the device."""
    vae = load_vae(write_vae(setting), dtype=dtype, device=setting.device)
    for batch_size in BATCH_SIZES:
        images = torch.rand(batch_size, 3, setting.pixels, setting.pixels) * 2 - 1
        images = images.to(setting.device)
        peak = PeakMemory(setting.device)
        seconds, _host = seconds_each(
            lambda images=images: vae.encode(images), setting.device, **rounds_of(setting)
        )
        results.figure(
            "Encoding pictures",
            precision=str(dtype).removeprefix("torch."),
            pixels=setting.pixels,
            batch=batch_size,
            **{"pictures per s": batch_size / min(seconds)},
            **peak.in_gib(),
        )


def captions(setting: Setting, results: Results, dtype: torch.dtype) -> None:
    """Encode captions of some thirty tokens, no two alike, tokens and copies included."""
    encoder = load_text_encoder(write_qwen(setting), demo.DEMO_T5_TOKENIZER, dtype, setting.device)
    count = 8 if setting.small else CAPTIONS
    texts = [f"{CAPTION}, {number}" for number in range(count)]
    peak = PeakMemory(setting.device)
    seconds, _host = seconds_each(
        lambda: encoder.encode(texts), setting.device, **rounds_of(setting)
    )
    results.figure(
        "Encoding captions",
        precision=str(dtype).removeprefix("torch."),
        captions=count,
        **{"captions per s": count / min(seconds)},
        **peak.in_gib(),
    )


def rounds_of(setting: Setting) -> dict[str, int]:
    """Return how often something is done."""
    return {"rounds": 1, "settling": 0} if setting.small else {"rounds": 4, "settling": 2}


if __name__ == "__main__":
    run_part(measure)
