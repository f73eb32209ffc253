"""Callbacks: one small file each."""
