"""The only part of the planner that imports torch: one build and one training step, on meta tensors or a real device."""
