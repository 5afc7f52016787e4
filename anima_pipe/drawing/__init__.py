"""Drawing pictures with the model: from noise to a file, and sheets of them."""
