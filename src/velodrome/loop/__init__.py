"""The loop: `fit` on one screen, epochs, progress, durations and results."""
