"""What a sentence asks, which of its words were used, and an answer for each kind of question."""
