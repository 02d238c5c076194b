"""What fits a card, and what to change so that it does."""
