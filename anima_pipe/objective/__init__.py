"""The objective: noise levels, noise, the loss, and a chart of them."""
