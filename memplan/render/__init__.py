"""Turns documents into text for a terminal, JSON and HTML. Computes nothing."""
