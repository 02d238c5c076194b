"""The formula's step as a sequence of allocations and frees, replayed through the caching allocator."""
