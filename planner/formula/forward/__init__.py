"""The parts of a transformer's training step, op by op, on the tape."""
