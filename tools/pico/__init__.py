"""How the embedded model is made: `tools/train_pico.py` runs these parts in turn."""
