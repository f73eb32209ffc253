"""Runs that go on with an earlier one: which, whether it fits, what a checkpoint holds besides the weights, and what is done when."""
