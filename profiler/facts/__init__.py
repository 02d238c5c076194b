"""What the installed libraries do, read off them by name."""
