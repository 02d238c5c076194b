"""Reconciles predictions with measurements: errors, accuracy, claims, questions."""
