"""A text checked sentence by sentence: split, read with the bank of parameterized claims, judged."""
