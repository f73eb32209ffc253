"""Metrics: sums kept on the device and read late."""
