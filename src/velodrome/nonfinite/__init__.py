"""Losses, gradients and weights that are not finite: what a run does about them, what it says, keeps and runs again."""
