"""Checkpoints that are whole or absent: atomic files, a manifest with hashes, retention, and reading without pickle."""
