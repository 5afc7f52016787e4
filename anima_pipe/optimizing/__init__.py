"""What moves the weights: optimizers, learning-rate schedules, bf16 rounding."""
