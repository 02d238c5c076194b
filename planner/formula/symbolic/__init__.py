"""Expressions in micro-batch, sequence length and rank, and the code generated from them."""
