"""The real libraries' training step on tensors without storage, watched and replayed through the
allocator.
"""
