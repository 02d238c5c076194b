"""Predicts the GPU memory of a fine-tuning run: config -> spec + setup -> rows -> moments -> peak ->
verdict.
"""

__version__ = "0.1.0"
