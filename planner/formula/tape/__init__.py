"""A symbolic autograd tape, and what PyTorch's ops save on it."""
