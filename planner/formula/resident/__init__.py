"""What stays in memory through a run: weights, adapters, optimizer states."""
