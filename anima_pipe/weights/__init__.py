"""Files of weights: their headers, their tensors, and which model they are of."""
