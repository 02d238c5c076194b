"""What fits a GPU, and what to change so that it does."""
