"""A LoRA and a LoKr from one cache and one model, loaded once; the one argument is a folder."""

import sys
from dataclasses import replace
from pathlib import Path

from anima_pipe import demo, runs

folder = Path(*sys.argv[1:2] or ["output/two_trainings"])
cache = runs.CacheSettings(folder=folder / "cache")
text = runs.TextSettings(cache=cache, qwen=demo.DEMO_QWEN, t5_tokenizer_dir=demo.DEMO_T5_TOKENIZER)
vae = runs.LatentSettings(cache=cache, vae=demo.DEMO_VAE)
buckets = runs.BucketRules(resolution=(128, 128), min_bucket_reso=64)
pictures = runs.SubsetConfig(image_dir=demo.DEMO_PICTURES)
datasets = (runs.DatasetConfig(subsets=(pictures,), buckets=buckets, batch_size=4),)
settings = runs.TrainSettings(
    data=runs.DataSettings(datasets=datasets, cache=cache, latents=vae, text=text),
    model=runs.ModelSettings(transformer=demo.DEMO_TRANSFORMER),
    save=runs.SaveConfig(folder=folder, name="lora"),
    learning_rate=2e-3,
    length=runs.LengthSettings(max_train_epochs=2),
    logs=runs.LogSettings(kinds=()),
    seed=1,
    device="cpu",
)
base = runs.load_base(settings.model, settings.device)
for kind in ("lora", "lokr"):
    run = replace(
        settings,
        adapter=runs.AdapterSettings(kind=kind, network_dim=8),
        save=replace(settings.save, name=kind),
    )
    summary = runs.train(run, base=base)
    print(f"{summary.output}: loss {summary.first_loss:.4f} to {summary.final_loss:.4f}")
