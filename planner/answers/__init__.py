"""Answers made of predictions: verdicts, what fits, comparisons, out-of-memory logs, the report's data."""
