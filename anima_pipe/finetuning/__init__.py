"""Training the model itself: its weights as what trains, and the checkpoint that it is saved as."""
