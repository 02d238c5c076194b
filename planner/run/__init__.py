"""The one build and the one training step, on meta tensors or a real device."""
