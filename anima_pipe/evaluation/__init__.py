"""What a model draws, told by the world's rules: for the embedded model's card and for the demo."""
