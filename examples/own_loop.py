"""A loop of one's own on the caches of the embedded pictures; the one argument is a folder."""

import sys
from pathlib import Path

import torch

from anima_pipe import demo, runs
from anima_pipe.adapters import create_adapter, save_adapter
from anima_pipe.dataset.cached import CachedDataset
from anima_pipe.model import TextConditionedTransformer, load_transformer
from anima_pipe.objective.flow_loss import ObjectiveConfig, draw
from anima_pipe.objective.passes import pass_losses, placed

folder = Path(*sys.argv[1:2] or ["output/own_loop"])
pictures = runs.SubsetConfig(image_dir=demo.DEMO_PICTURES, flip_aug=True)
buckets = runs.BucketRules(resolution=(128, 128), min_bucket_reso=64)
datasets = (runs.DatasetConfig(subsets=(pictures,), buckets=buckets, batch_size=4),)
cache = runs.CacheSettings(folder=folder / "cache")
vae = runs.LatentSettings(cache=cache, vae=demo.DEMO_VAE)
text = runs.TextSettings(cache=cache, qwen=demo.DEMO_QWEN, t5_tokenizer_dir=demo.DEMO_T5_TOKENIZER)
runs.cache_latents(runs.CacheLatentsSettings(datasets=datasets, latents=vae))
runs.encode_text(runs.EncodeTextSettings(datasets=datasets, text=text))

dataset = CachedDataset.open(datasets, cache.folder, seed=1)
model = load_transformer(demo.DEMO_TRANSFORMER)
adapter = create_adapter("lora", model, network_dim=8, network_alpha=8)
module, objective = TextConditionedTransformer(model), ObjectiveConfig()
optimizer = torch.optim.AdamW(adapter.parameters(), lr=5e-3)
batches = (batch for number in range(4) for batch in dataset.epoch(number).loader())
for step, batch in enumerate(batches):
    draws = draw(batch.latents.shape, objective, seed=step)
    inputs = placed(batch, draws, torch.device("cpu"), torch.float32)
    loss = (pass_losses(module, inputs, objective.loss) * inputs.weights).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {loss.item():.4f}")
save_adapter(adapter, folder / "own_loop.safetensors")
