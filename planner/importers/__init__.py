"""Training configuration files that people already have -> Setup fields. No framework is imported."""
