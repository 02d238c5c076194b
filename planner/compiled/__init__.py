"""A trace as a program: one log of events whose sizes are polynomials in micro-batch and sequence length,
solved from a few traces and kept for the next question.
"""
