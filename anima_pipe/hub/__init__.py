"""Files from model hubs: the only door to the clients of Hugging Face and ModelScope."""
