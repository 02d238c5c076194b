"""Measures what the planner predicts: the same build and step, on a real device."""
