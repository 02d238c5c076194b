"""What the device does and meta does not show: kernels, backends, policies."""
