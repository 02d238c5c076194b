"""What a watched run leaves: events, whose they are, how layers repeat, and the moments they make."""
