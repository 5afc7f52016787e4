"""What is trained: the dataset as configured, what it needs, the plan, the batches."""
