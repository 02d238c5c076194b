"""PyTorch's CUDA caching allocator, replayed without torch."""
