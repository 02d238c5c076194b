"""One training step executed symbolically, without torch: rows, moments, peak."""
