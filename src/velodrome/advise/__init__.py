"""What could be better about a training, measured on the user's own machine."""
