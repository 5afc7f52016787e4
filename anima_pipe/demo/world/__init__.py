"""The world that the embedded model is taught: what there is, how it looks, and how to tell."""
