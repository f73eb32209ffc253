"""Checkpoints that are whole or absent: atomic files, a manifest with hashes, reading without pickle."""
