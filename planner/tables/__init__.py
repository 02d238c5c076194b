"""What a row adds to: methods, optimizers, recipes, GPUs, attention backends, peft types, dtypes, units,
errors.
"""
